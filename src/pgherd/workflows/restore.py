"""Put a service's data back to an earlier time in place; take that back; or confirm it. The data from before is kept
until one of the two."""

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
from pgherd.workflows.nodes import restart_where_pending, start_nodes
from pgherd.workflows.run import Run

#: Seconds until a restore that did not end is a time-out; large services take hours.
WITHIN = 6 * 3600


def request(app: App, caller: Caller, operation: UUID, name: str, moment: datetime) -> UUID:
    """Accept it if the last observation knows nothing that speaks against that time."""

    def wish(tx: Transaction) -> UUID:
        row, status = _found(tx, caller, name)
        check_status(moment, status, "to", broken_of(tx, row["id"]))
        timeline = timeline_of(tx, row["id"], moment)
        return _set(tx, row, Origin(str(operation), "restore", str(row["id"]), written(moment), timeline, keep=True))

    return accept(app, caller, operation, "restore", WITHIN, wish)


def undo(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """Bring the data back that the last restore put aside; what was written since then is deleted."""

    def wish(tx: Transaction) -> UUID:
        row, status = _found(tx, caller, name)
        _must_be_kept(status, name)
        return _set(tx, row, Origin(str(operation), "undo", str(row["id"])))

    return accept(app, caller, operation, "restore", WITHIN, wish)


def confirm(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """Delete the data that the last restore put aside."""

    def wish(tx: Transaction) -> UUID:
        row, status = _found(tx, caller, name)
        _must_be_kept(status, name)
        origin = msgspec.convert(row["origin"], Origin)
        return _set(tx, row, msgspec.structs.replace(origin, keep=False))

    return accept(app, caller, operation, "restore", WITHIN, wish)


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


def _must_be_kept(status: NodeStatus | None, name: str) -> None:
    if status is None or status.origin is None or not status.origin.aside:
        raise Conflict(f"No data of {name} from before a restore is kept; it was never restored, or that is confirmed.")


def _set(tx: Transaction, row: DictRow, origin: Origin) -> UUID:
    service: UUID = row["id"]
    tx.run("set_origin", id=service, origin=Jsonb(msgspec.to_builtins(origin)))
    return service


def carry_out(run: Run) -> None:
    """The service runs on until its new data is complete; then it is stopped for the exchange."""
    run.step("restore the data", start_nodes)
    run.step("settle parameters", restart_where_pending)
