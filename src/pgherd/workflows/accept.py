"""Accept a request: the wish, the operation and its job in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from pgherd import failpoints
from pgherd.errors import Conflict, PgherdError
from pgherd.store.db import Transaction
from pgherd.workflows.app import App, Caller

#: Kinds that go on for long and change nothing that others wait for: they have a queue of their own for each service.
_BESIDE = frozenset({"backup", "verify"})


def accept(
    app: App,
    caller: Caller,
    operation: UUID,
    kind: str,
    within: float,
    wish: Callable[[Transaction], UUID],
    task: msgspec.Struct | None = None,
    secret: bytes | None = None,
) -> UUID:
    """Carry `wish` out, which returns the service's id, and open its operation, due in `within` seconds.

    `task` is what the operation's run needs to know beside the wish, `secret` what it needs sealed by the vault.
    The same request again (key and signature) gets the operation that it got before, also when both run at
    once: the loser of the race may fail in `wish` because of what the winner did, so a failure looks again.
    Returns the operation's id, which is `operation` unless the request is a repeated one.
    """
    try:
        with app.db.transaction() as tx:
            earlier = tx.row("operation_of_request", key=caller.key, signature=caller.signature)
            if earlier is not None:
                return UUID(str(earlier["id"]))
            service = wish(tx)
            open_operation(tx, operation, caller.organization_id, service, kind, within, task, secret, caller)
            failpoints.passing(f"{kind} accept before commit")
    except (PgherdError, psycopg.errors.UniqueViolation) as error:
        with app.db.transaction() as tx:
            earlier = tx.row("operation_of_request", key=caller.key, signature=caller.signature)
        if earlier is not None:
            return UUID(str(earlier["id"]))
        if isinstance(error, PgherdError):
            raise
        raise Conflict("Another request got in between; try again.", detail=str(error)) from error
    failpoints.passing(f"{kind} accept after commit")
    return operation


def open_operation(
    tx: Transaction,
    operation: UUID,
    organization: UUID,
    service: UUID,
    kind: str,
    within: float,
    task: msgspec.Struct | None = None,
    secret: bytes | None = None,
    caller: Caller | None = None,
) -> None:
    """Insert the operation and its job; `caller` is None when the platform itself opens it."""
    tx.run(
        "insert_operation",
        id=operation,
        organization_id=organization,
        service_id=service,
        kind=kind,
        within=within,
        key=caller.key if caller else None,
        signature=caller.signature if caller else None,
    )
    if task is not None:
        tx.run("set_task", id=operation, task=Jsonb(msgspec.to_builtins(task)), secret=secret)
    defer(tx, operation, service, kind)


def defer(tx: Transaction, operation: UUID, service: UUID, kind: str) -> None:
    """Give the operation a job of its service's queue, or of one of its own beside that."""
    lock = f"{service}/{kind}" if kind in _BESIDE else str(service)
    tx.run("defer", lock=lock, queueing_lock=str(operation), operation=str(operation))
