"""Delete a service. Once accepted it is gone for its organization; the rest is repeated until it is done."""

from __future__ import annotations

from uuid import UUID

from pgherd.errors import Forbidden, NotFound
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import service_row, wish_of
from pgherd.workflows.repositories import forget_repository
from pgherd.workflows.run import Run

#: Seconds until a delete that did not end is a time-out; the reconciler finishes it all the same.
WITHIN = 900


def request(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """Mark the service, end what still runs on it as interrupted, tell the hosts."""

    def mark(tx: Transaction) -> UUID:
        row = tx.row("lock_service", organization_id=caller.organization_id, name=name)
        if row is None:
            raise NotFound("Service does not exist")
        if wish_of(row).termination_protection:
            raise Forbidden(
                "Service is protected against termination and shutdown. Remove termination protection first."
            )
        service: UUID = row["id"]
        tx.run("mark_deleted", id=service)
        tx.rows("end_others", service_id=service, id=operation, message="The service was deleted.")
        seconds = app.settings.keep_deleted_days * 86_400
        if seconds and _can_come_back(tx, service):
            tx.run("keep_service", id=service, seconds=seconds)
            tx.run("want_kept", service_id=service)
        else:
            tx.run("want_absent", service_id=service)
        tx.run("wake_hosts", service_id=service)
        return service

    return accept(app, caller, operation, "delete", WITHIN, mark)


def _can_come_back(tx: Transaction, service: UUID) -> bool:
    """Whether there is a backup; a service without one is deleted at once."""
    nodes = tx.rows("nodes", service_id=service)
    known = [((node["status"] or {}).get("repository") or {}).get("backups") for node in nodes]
    return bool(known) and all(known)


def carry_out(run: Run) -> None:
    """Wait until no host has anything of it, or only what is kept; then forget its secrets and let its ports rest."""
    run.step("remove nodes", lambda run: run.until(nodes_are_gone))
    run.step("forget secrets", clear)


def nodes_are_gone(run: Run) -> str | None:
    """None when every host reported its nodes absent."""
    with run.app.db.transaction() as tx:
        row = tx.row("present_nodes", service_id=run.service)
    assert row is not None
    return f"{row['present']} nodes are being removed" if row["present"] else None


def clear(run: Run) -> None:
    """Nothing of the service is left in the metadata but its name and its operations, unless it is kept for a while."""
    with run.transaction() as tx:
        if service_row(tx, run)["kept_until"] is not None:
            tx.run("release_port_block", service_id=run.service)
            return
        clear_records(tx, run.service)


def clear_records(tx: Transaction, service: UUID) -> None:
    """The same for the reconciler, which finishes a delete whose operation ended early."""
    tx.run("clear_nodes", service_id=service)
    tx.run("clear_access", service_id=service)
    forget_repository(tx, service)
    tx.run("clear_samples", service_id=service)
    tx.run("release_port_block", service_id=service)
    tx.run("clear_service", id=service)
