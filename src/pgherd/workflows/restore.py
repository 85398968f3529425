"""Put a service's data back to an earlier time in place; take that back; or confirm it. The data from before is kept
until one of the two: a host deletes it when a confirmation names the restore, never because of what a spec lacks."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, NotFound
from pgherd.model.moment import written
from pgherd.model.origin import Origin
from pgherd.spec import NodeStatus
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.forks import broken_of, check_status, timeline_of
from pgherd.workflows.nodes import change_specs, nodes_in_force, restart_where_pending, start_nodes
from pgherd.workflows.run import Run

#: Seconds until a restore that did not end is a time-out; large services take hours.
WITHIN = 6 * 3600


class Confirmed(msgspec.Struct):
    """What was there before this restore is not wanted any more."""

    restore: str = ""


def request(app: App, caller: Caller, operation: UUID, name: str, moment: datetime) -> UUID:
    """Accept it if the last observation knows nothing that speaks against that time."""

    def wish(tx: Transaction) -> UUID:
        row, status = _found(tx, caller, name)
        check_status(moment, status, "to", broken_of(tx, row["id"]))
        timeline = timeline_of(tx, row["id"], moment)
        return _set(tx, row, Origin(str(operation), "restore", str(row["id"]), written(moment), timeline))

    return accept(app, caller, operation, "restore", WITHIN, wish)


def undo(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """Bring the data back that the first restore put aside; what was written since then is deleted."""

    def wish(tx: Transaction) -> UUID:
        row, status = _found(tx, caller, name)
        _kept(status, name)
        return _set(tx, row, Origin(str(operation), "undo", str(row["id"])))

    return accept(app, caller, operation, "restore", WITHIN, wish)


def confirm(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """Delete the data that the first restore put aside."""
    confirmed = Confirmed()

    def wish(tx: Transaction) -> UUID:
        row, status = _found(tx, caller, name)
        confirmed.restore = _kept(status, name)
        service: UUID = row["id"]
        return service

    return accept(app, caller, operation, "restore", WITHIN, wish, confirmed)


def _found(tx: Transaction, caller: Caller, name: str) -> tuple[DictRow, NodeStatus | None]:
    row = tx.row("lock_service", organization_id=caller.organization_id, name=name)
    if row is None:
        raise NotFound("Service does not exist")
    if row["settled"] is None:
        raise Conflict("The service has never run; there is nothing to restore.")
    if row["stopped_at"] is not None:
        raise Conflict("The service is stopped; start it first.")
    if tx.row("pending_restore", service_id=row["id"]) is not None:
        raise Conflict("Another restore of the service has not ended yet; wait for its end.")
    status = next((node["status"] for node in tx.rows("nodes", service_id=row["id"]) if node["status"]), None)
    return row, msgspec.convert(status, NodeStatus) if status else None


def _kept(status: NodeStatus | None, name: str) -> str:
    """The restore from before which data is kept."""
    if status is None or status.origin is None or not status.origin.kept:
        raise Conflict(f"No data of {name} from before a restore is kept; it was never restored, or that is confirmed.")
    return status.origin.kept


def _set(tx: Transaction, row: DictRow, origin: Origin) -> UUID:
    service: UUID = row["id"]
    tx.run("set_origin", id=service, origin=Jsonb(msgspec.to_builtins(origin)))
    return service


def carry_out(run: Run) -> None:
    """The service runs on until its new data is complete; then it is stopped for the exchange."""
    with run.app.db.transaction() as tx:
        row = tx.row("task", id=run.operation)
    if row is not None and row["task"] is not None:
        confirmed = msgspec.convert(row["task"], Confirmed)
        run.step("delete the old data", lambda run: _forget(run, confirmed))
        return
    run.step("restore the data", start_nodes)
    run.step("settle parameters", restart_where_pending)


def _forget(run: Run, confirmed: Confirmed) -> None:
    change_specs(run, lambda _: {"confirmed": confirmed.restore})
    run.until(nodes_in_force)
