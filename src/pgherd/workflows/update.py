"""Change a service: plan, protection, filter, slots, sizes and settings."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, Incorrect, NotFound, PgherdError
from pgherd.fleet.placement import GIB
from pgherd.model import features
from pgherd.model.plan import PLANS
from pgherd.model.pool import check_sum
from pgherd.model.service import Change, Wish, how_to_start
from pgherd.settings import Settings
from pgherd.spec import disk_limit
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.limits import hosts, refuse_full_hosts, refuse_more_memory
from pgherd.workflows.nodes import (
    NodeFailed,
    ensure_certificates,
    pools_of,
    restart_where_pending,
    service_row,
    start_nodes,
    wish_of,
)
from pgherd.workflows.run import Run

#: Seconds until an update that did not end is a time-out.
WITHIN = 900


class Note(msgspec.Struct):
    """What the operation's run needs to know.

    `restart`: whether it may restart PostgreSQL, which only a change of what PostgreSQL itself is to be does. What
    else waits for a restart, as after a roll of the platform's parameters, is left to the maintenance.
    `before` and `sent`: the wish that the request met, and what it asked for. So an update comes into force without
    those behind it, and can be taken back from under them. Null: the platform changes no wish.
    """

    restart: bool = True
    before: Wish | None = None
    sent: Change | None = None

    def take(self, before: Wish, sent: Change) -> Wish:
        """Note a request that met this wish; the wish after it."""
        after = before.changed(sent)
        self.restart = (
            msgspec.structs.replace(after.cold(before), pgbouncer_settings=before.pgbouncer_settings) != before
        )
        self.before, self.sent = before, sent
        return after


def request(app: App, caller: Caller, operation: UUID, name: str, change: Change) -> UUID:
    """Merge the change into the wish; the row lock keeps the order of requests."""
    note = Note()

    def merge(tx: Transaction) -> UUID:
        tx.row("lock_organization", id=caller.organization_id)
        row = tx.row("lock_service", organization_id=caller.organization_id, name=name)
        if row is None:
            raise NotFound("Service does not exist")
        if row["phase"] == "poweroff":
            raise Conflict("The service was not created; delete it and create it again.")
        old = wish_of(row)
        if change.version is not msgspec.UNSET and change.version != old.version:
            raise Incorrect(
                f"version: the service runs PostgreSQL {old.version};"
                " a change of the major version is not available yet."
            )
        new = note.take(old, change)
        if row["stopped_at"] is not None and new != old.cold(new):
            raise Conflict(
                "The service is stopped: only termination-protection, ip-filter, maintenance and backup-schedule can be"
                f" changed meanwhile. {how_to_start(name)}"
            )
        _refuse_unfit(tx, row["id"], old, new)
        memory_bytes = PLANS[new.plan].memory_bytes * PLANS[new.plan].nodes
        _refuse_over_limits(app.settings, tx, row, memory_bytes)
        tx.run("update_wish", id=row["id"], wish=Jsonb(msgspec.to_builtins(new)), memory_bytes=memory_bytes)
        service: UUID = row["id"]
        return service

    return accept(app, caller, operation, "update", WITHIN, merge, note)


def _refuse_unfit(tx: Transaction, service: UUID, old: Wish, new: Wish) -> None:
    """Raise Incorrect or Conflict when the service, as it is, cannot become so."""
    features.check_variant(old, new)
    for node in tx.rows("nodes", service_id=service):
        installed = features.Installed.on(node["facts"], new.version)
        features.check(new, installed, lambda: [host.facts for host in hosts(tx)])
    _refuse_smaller_disk(tx, service, old, new)
    if new.plan != old.plan or new.pgbouncer_settings != old.pgbouncer_settings:
        field = "plan" if new.plan != old.plan else "pgbouncer-settings"
        check_sum(pools_of(tx, service), new.pgbouncer_settings, PLANS[new.plan].max_connections, field)


def _refuse_over_limits(settings: Settings, tx: Transaction, row: DictRow, memory_bytes: int) -> None:
    more = memory_bytes - row["memory_bytes"]
    if more > 0:
        refuse_more_memory(settings, tx, row["organization_id"], more)
        tx.run("lock_hosts")
        refuse_full_hosts(settings, tx, row["id"], more)


def _refuse_smaller_disk(tx: Transaction, service: UUID, old: Wish, new: Wish) -> None:
    """The new plan's disk holds 125 % of what is used now, as the hosted service demands.

    Where a smaller file system of the service's own is the limit before and after, the plan changes nothing about it.
    """
    for node in tx.rows("nodes", service_id=service):
        status = node["status"] or {}
        used, capacity = status.get("disk_used", 0), status.get("disk_capacity", 0)
        before, after = (disk_limit(PLANS[wish.plan].disk_bytes, capacity) for wish in (old, new))
        if after < before and used * 125 > after * 100:
            raise Conflict(
                f"plan: {new.plan} has {after / GIB:.0f} GiB of disk, but {used / GIB:.1f} GiB are used and a plan must"
                " hold 125 % of that."
            )


def carry_out(run: Run) -> None:
    """By reload where that is enough, with one restart where a parameter needs it; back again if a host refuses."""
    try:
        _apply(run)
    except NodeFailed as error:
        if run.verdict:
            raise
        run.step("go back", partial(_go_back, error=error))
        _apply(run)


def _go_back(run: Run, error: NodeFailed) -> None:
    """What this update asked for is no longer wished for; it will fail with the reason, whichever run ends it.

    The wish is again what was in force, with what the updates behind this one ask for, which get notes that say so.
    One that does not fit without this one fails as it would have if it had come afterwards.
    """
    run.verdict = error.message
    with run.transaction() as tx:
        row, own = service_row(tx, run), _note(tx.row("task", id=run.operation))
        base = msgspec.convert(row["settled"], Wish) if row["settled"] else own.before
        later = [(behind["id"], _note(behind)) for behind in tx.rows("later_updates", id=run.operation)]
        if base is not None and not any(note.restart and note.sent is None for _, note in later):  # of an older version
            wish = _replay(tx, run.service, base, later)
            plan = PLANS[wish.plan]
            memory_bytes = plan.memory_bytes * plan.nodes
            tx.run("update_wish", id=run.service, wish=Jsonb(msgspec.to_builtins(wish)), memory_bytes=memory_bytes)
        tx.run("set_verdict", id=run.operation, verdict=run.verdict)


def _replay(tx: Transaction, service: UUID, wish: Wish, updates: list[tuple[UUID, Note]]) -> Wish:
    """The wish after these updates, each noted anew; those end that ask for what the service cannot be."""
    for operation, note in updates:
        if note.sent is None:
            continue
        try:
            _refuse_unfit(tx, service, wish, wish.changed(note.sent))
        except PgherdError as unfit:
            message = f"A change that was accepted before failed. Without it: {unfit.message}"[:500]
            tx.row("end_operation", id=operation, attempt=None, state="failure", reason=unfit.reason, message=message)
            continue
        wish = note.take(wish, note.sent)
        tx.run("renew_task", id=operation, task=Jsonb(msgspec.to_builtins(note)))
    return wish


def _note(row: DictRow | None) -> Note:
    return msgspec.convert(row["task"], Note) if row is not None and row["task"] else Note()


def _apply(run: Run) -> None:
    run.step("issue certificates", ensure_certificates)
    run.step("apply settings", start_nodes)
    run.step("restart where needed", _restart)


def _restart(run: Run) -> None:
    with run.app.db.transaction() as tx:
        note = _note(tx.row("task", id=run.operation))
    if note.restart:
        restart_where_pending(run)
