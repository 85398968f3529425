"""Maintenance: what waits for a service (a newer minor, parameters that want a restart) comes into force now."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from psycopg.rows import DictRow

from pgherd.model.maintenance import Kind, pending
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.access import running_service
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import (
    NodeFailed,
    change_specs,
    clean,
    ensure_certificates,
    nodes_in_force,
    restart_where,
    service_row,
    start_nodes,
    wish_of,
)
from pgherd.workflows.run import Run

#: Seconds until a maintenance that did not end is a time-out.
WITHIN = 900


def request(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """Start it; where nothing waits it ends in success at once."""

    def find(tx: Transaction) -> UUID:
        service: UUID = running_service(tx, caller, name)["id"]
        return service

    return accept(app, caller, operation, "maintenance", WITHIN, find)


def carry_out(run: Run) -> None:
    """One restart of PostgreSQL if anything wants it, which renews the pooler too; else of the pooler alone."""
    run.step("issue certificates", ensure_certificates)
    run.step("apply settings", start_nodes)
    run.step("restart PostgreSQL", restart_servers)
    run.step("restart PgBouncer", restart_poolers)


def restart_servers(run: Run) -> None:
    """Nothing waits for a restart of PostgreSQL, a minor version included. Raises NodeFailed."""
    waiting = partial(_waiting, major=_major(run), kinds=("postgresql", "parameters"))
    restart_where(run, waiting)
    _refuse_what_waits(run, waiting)


def restart_poolers(run: Run) -> None:
    """Every PgBouncer is of the installed version. Raises NodeFailed."""
    waiting = partial(_waiting, major=_major(run), kinds=("pgbouncer",))

    def renewed(node: DictRow) -> dict[str, Any]:
        return {"pooler_version": node["facts"]["pooler"]} if waiting(node) else {}

    change_specs(run, renewed)
    run.until(nodes_in_force)
    _refuse_what_waits(run, waiting)


def _major(run: Run) -> str:
    with run.app.db.transaction() as tx:
        return wish_of(service_row(tx, run)).version


def _waiting(node: DictRow, major: str, kinds: tuple[Kind, ...]) -> str:
    updates = pending(node["status"] or {}, node["facts"] or {}, major)
    words = "; ".join(update.description for update in updates if update.kind in kinds)
    return f"This still waits: {clean(words)}" if words else ""


def _refuse_what_waits(run: Run, waiting: Callable[[DictRow], str]) -> None:
    with run.app.db.transaction() as tx:
        for node in tx.rows("nodes", service_id=run.service):
            if left := waiting(node):
                raise NodeFailed(f"Node {node['name']}: {left}.")
