"""Prove a service's newest backup: `request` accepts it, or the schedule does; `carry_out` has the host do it."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict
from pgherd.spec import Job, Verification
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept, open_operation
from pgherd.workflows.access import running_service
from pgherd.workflows.app import App, Caller
from pgherd.workflows.backup import backups_of, job_is_done, job_of
from pgherd.workflows.nodes import NodeFailed, change_specs
from pgherd.workflows.run import Run

#: Seconds until a proof that did not end is a time-out.
WITHIN = 24 * 3600


class Wanted(msgspec.Struct, frozen=True):
    """What the operation asks for."""

    scheduled: bool = False


def request(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """Accept a proof by hand. One at a time, and only when there is a backup."""

    def check(tx: Transaction) -> UUID:
        row = running_service(tx, caller, name)
        if tx.row("pending_verify", service_id=row["id"]) is not None:
            raise Conflict("The backups of this service are already being verified.")
        if not any(backups_of(node["status"]) for node in tx.rows("nodes", service_id=row["id"])):
            raise Conflict("The service has no backup yet; take one first.")
        service: UUID = row["id"]
        return service

    return accept(app, caller, operation, "verify", WITHIN, check, Wanted())


def open_scheduled(tx: Transaction, organization: UUID, service: UUID) -> None:
    """Open a proof that nobody asked for."""
    open_operation(tx, uuid4(), organization, service, "verify", WITHIN, Wanted(scheduled=True))


def carry_out(run: Run) -> None:
    """One job of the service's host, and what it found is kept; a problem is the operation's failure."""
    run.step("verify", restore_and_look)
    run.step("record", record)


def restore_and_look(run: Run) -> None:
    """The host has carried the job out, or says why it cannot."""
    with run.app.db.transaction() as tx:
        row = tx.row("task", id=run.operation)
    assert row is not None
    wanted = msgspec.convert(row["task"], Wanted)

    def with_job(node: DictRow) -> dict[str, Any]:
        jobs = [job for job in node["spec"].get("jobs", []) if job["name"] != "verify"]
        job = msgspec.to_builtins(Job(str(run.operation), "verify", scheduled=wanted.scheduled))
        return {} if job in node["spec"].get("jobs", []) else {"jobs": [*jobs, job]}

    change_specs(run, with_job)
    try:
        run.until(job_is_done)
    except NodeFailed as error:
        found = [one for one in _verifications(run) if one is not None and one.impossible]
        _keep(run, found[0] if found else Verification(impossible=error.message))
        raise


def record(run: Run) -> None:
    """What was found is in the metadata; raises Conflict with the first problems when it is not sound."""
    for told in _verifications(run):
        found = told or Verification(impossible="The host does not say what it found.")
        _keep(run, found)
        if found.problems or found.impossible:
            raise Conflict(summary(found))


def _verifications(run: Run) -> list[Verification | None]:
    """What each host says that it found."""
    with run.app.db.transaction() as tx:
        nodes = tx.rows("nodes", service_id=run.service)
    statuses = [job_of(node["status"], str(run.operation)) for node in nodes]
    return [status.verification if status else None for status in statuses]


def summary(found: Verification) -> str:
    """The first problems and the times that they break, in one line."""
    if not found.problems:
        return f"The newest backup could not be verified: {found.impossible}"
    more = len(found.problems) - 2
    words = " ".join(found.problems[:2]) + (f" And {more} more." if more > 0 else "")
    times = ", ".join(f"{window.start} to {window.end}" for window in found.broken[:3])
    if found.impossible:
        words += f" Not all could be looked at: {found.impossible}"
    if times:
        return f"{words} No point in time can be restored from {times}."
    return words if found.impossible else f"{words} Every time can still be restored."


def _keep(run: Run, found: Verification) -> None:
    state = "damaged" if found.problems else "impossible" if found.impossible else "sound"
    report = Jsonb(msgspec.to_builtins(found))
    with run.transaction() as tx:
        before = tx.row("last_verification", service_id=run.service)
        tx.run("write_verification", service_id=run.service, backup=found.backup, state=state, report=report)
        if state == (before["state"] if before else "sound"):
            return
        service = tx.row("service_by_id", id=run.service)
        assert service is not None
        result = summary(found) if state != "sound" else "backups are sound again"
        tx.row(
            "insert_event", organization_id=run.organization, key="", remote="", command="verify",
            subject=service["name"], result=result[:1000],
        )  # fmt: skip
