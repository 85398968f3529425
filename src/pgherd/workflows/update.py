"""Change a service: plan, protection, filter, slots, sizes and settings."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, Incorrect, NotFound
from pgherd.fleet.placement import GIB
from pgherd.model import features
from pgherd.model.plan import PLANS
from pgherd.model.pool import check_sum
from pgherd.model.service import Change, Wish, how_to_start
from pgherd.settings import Settings
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
    """Whether the operation may restart PostgreSQL: only a change of what PostgreSQL itself is to be does.

    What else waits for a restart, as after a roll of the platform's parameters, is left to the maintenance.
    """

    restart: bool = True


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
        new = old.changed(change)
        features.check_variant(old, new)
        for node in tx.rows("nodes", service_id=row["id"]):
            installed = features.Installed.on(node["facts"], new.version)
            features.check(new, installed, lambda: [host.facts for host in hosts(tx)])
        if row["stopped_at"] is not None and new != old.cold(new):
            raise Conflict(
                "The service is stopped: only termination-protection, ip-filter, maintenance and backup-schedule can be"
                f" changed meanwhile. {how_to_start(name)}"
            )
        _refuse_smaller_disk(tx, row, old, new)
        if new.plan != old.plan or new.pgbouncer_settings != old.pgbouncer_settings:
            field = "plan" if new.plan != old.plan else "pgbouncer-settings"
            check_sum(pools_of(tx, row["id"]), new.pgbouncer_settings, PLANS[new.plan].max_connections, field)
        memory_bytes = PLANS[new.plan].memory_bytes * PLANS[new.plan].nodes
        _refuse_over_limits(app.settings, tx, row, memory_bytes)
        tx.run("update_wish", id=row["id"], wish=Jsonb(msgspec.to_builtins(new)), memory_bytes=memory_bytes)
        note.restart = msgspec.structs.replace(new.cold(old), pgbouncer_settings=old.pgbouncer_settings) != old
        service: UUID = row["id"]
        return service

    return accept(app, caller, operation, "update", WITHIN, merge, note)


def _refuse_over_limits(settings: Settings, tx: Transaction, row: DictRow, memory_bytes: int) -> None:
    more = memory_bytes - row["memory_bytes"]
    if more > 0:
        refuse_more_memory(settings, tx, row["organization_id"], more)
        tx.run("lock_hosts")
        refuse_full_hosts(settings, tx, row["id"], more)


def _refuse_smaller_disk(tx: Transaction, row: DictRow, old: Wish, new: Wish) -> None:
    """The new plan's disk holds 125 % of what is used now, as the hosted service demands."""
    target = PLANS[new.plan].disk_bytes
    if target >= PLANS[old.plan].disk_bytes:
        return
    used = max((node["status"] or {}).get("disk_used", 0) for node in tx.rows("nodes", service_id=row["id"]))
    if used * 125 > target * 100:
        raise Conflict(
            f"plan: {new.plan} has {target / GIB:.0f} GiB of disk, but {used / GIB:.1f} GiB are used and a plan must"
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
    """The wish is again what was in force; the operation will fail with the reason, whichever run ends it.

    With another change waiting the wish stays: that change holds this one's values too, and its run decides.
    """
    run.verdict = error.message
    with run.transaction() as tx:
        settled = service_row(tx, run)["settled"]
        if settled is not None:
            plan = PLANS[settled["plan"]]
            memory_bytes = plan.memory_bytes * plan.nodes
            tx.run("go_back", id=run.service, operation=run.operation, memory_bytes=memory_bytes)
        tx.run("set_verdict", id=run.operation, verdict=run.verdict)


def _apply(run: Run) -> None:
    run.step("issue certificates", ensure_certificates)
    run.step("apply settings", start_nodes)
    run.step("restart where needed", _restart)


def _restart(run: Run) -> None:
    """Others that wait have written their wishes, which this run brought into force too: then it restarts for them."""
    with run.app.db.transaction() as tx:
        row = tx.row("task", id=run.operation)
        others = tx.row("others_pending", service_id=run.service, id=run.operation)
    note = msgspec.convert(row["task"], Note) if row is not None and row["task"] else Note()
    if note.restart or (others is not None and others["pending"]):
        restart_where_pending(run)
