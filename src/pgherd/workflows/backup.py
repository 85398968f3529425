"""Back up a service: `request` accepts it, or the schedule does; `carry_out` has the host do it."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import msgspec
from psycopg.rows import DictRow

from pgherd.errors import Conflict
from pgherd.model.backup import wants_full
from pgherd.model.plan import PLANS
from pgherd.spec import Backup, Job, JobStatus
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept, open_operation
from pgherd.workflows.access import running_service
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import NodeFailed, change_specs, clean, service_row, wish_of
from pgherd.workflows.run import Run

#: Seconds until a backup that did not end is a time-out.
WITHIN = 12 * 3600


class Wanted(msgspec.Struct, frozen=True):
    """What the operation asks for. `full` None: as it fits."""

    full: bool | None = None
    scheduled: bool = False


def request(app: App, caller: Caller, operation: UUID, name: str, full: bool | None) -> UUID:
    """Accept a backup by hand. One at a time: a second is refused while one runs."""

    def check(tx: Transaction) -> UUID:
        row = running_service(tx, caller, name)
        if tx.row("pending_backup", service_id=row["id"]) is not None:
            raise Conflict("A backup of this service is already running.")
        service: UUID = row["id"]
        return service

    return accept(app, caller, operation, "backup", WITHIN, check, Wanted(full))


def open_scheduled(tx: Transaction, organization: UUID, service: UUID) -> None:
    """Open a backup that nobody asked for."""
    open_operation(tx, uuid4(), organization, service, "backup", WITHIN, Wanted(scheduled=True))


def carry_out(run: Run) -> None:
    """One job of the service's host. The spec loses it again when the operation ends, however it ends (0006)."""
    run.step("back up", take)


def take(run: Run) -> None:
    """The host has taken the backup and seen it in the repository."""
    with run.app.db.transaction() as tx:
        row = tx.row("task", id=run.operation)
        keep = PLANS[wish_of(service_row(tx, run)).plan].backups.count
    assert row is not None
    wanted = msgspec.convert(row["task"], Wanted)

    def with_job(node: DictRow) -> dict[str, Any]:
        jobs = [job for job in node["spec"].get("jobs", []) if job["name"] != "backup"]
        if any(job["id"] == str(run.operation) for job in node["spec"].get("jobs", [])):
            return {}
        full = wants_full(backups_of(node["status"]), keep) if wanted.full is None else wanted.full
        job = Job(str(run.operation), "backup", full=full, scheduled=wanted.scheduled)
        return {"jobs": [*jobs, msgspec.to_builtins(job)]}

    change_specs(run, with_job)
    run.until(job_is_done)


def job_is_done(run: Run) -> str | None:
    """None when every host has done the operation's job; else how it stands. Raises NodeFailed with a host's reason."""
    with run.app.db.transaction() as tx:
        nodes = tx.rows("nodes", service_id=run.service)
    for node in nodes:
        found = job_of(node["status"], str(run.operation))
        if node["spec"] is None or node["spec"]["desired"] != "running":
            raise NodeFailed("The service was stopped.")
        if found is None:
            return f"{node['name']}: waits for its host"
        if found.state == "failed":
            raise NodeFailed(f"Node {node['name']}: {clean(found.reason)}")
        if found.state != "done":
            return f"{node['name']}: {found.state}"
    return None


def job_of(status: dict[str, Any] | None, operation: str) -> JobStatus | None:
    """How a host says that an operation's job stands; None when it does not know of it yet."""
    found = [job for job in (status or {}).get("jobs", []) if job.get("id") == operation]
    return msgspec.convert(found[0], JobStatus) if found else None


def backups_of(status: dict[str, Any] | None) -> list[Backup]:
    """The backups that a host has seen, the oldest first."""
    return msgspec.convert(((status or {}).get("repository") or {}).get("backups", []), list[Backup])
