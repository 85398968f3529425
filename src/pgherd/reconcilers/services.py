"""Services stay as wished: deleted ones vanish, platform parameters and certificates are renewed."""

from __future__ import annotations

import logging
from uuid import UUID, uuid4

import msgspec

from pgherd.model import certificates
from pgherd.spec import PLATFORM
from pgherd.store.db import Transaction
from pgherd.workflows import power
from pgherd.workflows.accept import open_operation
from pgherd.workflows.app import App
from pgherd.workflows.delete import clear_records
from pgherd.workflows.nodes import certificate_hosts, clean
from pgherd.workflows.update import WITHIN, Note

log = logging.getLogger(__name__)


def finish_deletes(tx: Transaction) -> None:
    """A deleted service whose hosts have nothing of it any more is forgotten, also when its operation timed out."""
    for row in tx.rows("deleted_uncleared"):
        tx.row("lock_service_by_id", id=row["id"])
        left = tx.row("present_nodes", service_id=row["id"])
        if left is not None and left["present"] == 0:
            clear_records(tx, row["id"])


def remove_kept(tx: Transaction) -> None:
    """What was kept of a deleted service goes when its time is over: repository, key, and the rest of its records."""
    for row in tx.rows("kept_too_long"):
        log.info("deleted service %s is not kept any longer", row["id"])
        tx.run("want_absent", service_id=row["id"])
        tx.run("wake_hosts", service_id=row["id"])


def tell_losses(tx: Transaction) -> None:
    """Data that its host had to make anew leaves an event that says what was lost."""
    for row in tx.rows("untold_losses"):
        log.warning("service %s: %s", row["name"], clean(row["lost"]))
        tx.row(
            "insert_event",
            organization_id=row["organization_id"],
            key="",
            remote="",
            command="rebuild-node",
            subject=row["name"],
            result=clean(row["lost"]),
        )


def roll_platform(tx: Transaction) -> None:
    """Services whose nodes have older platform parameters get an update of their own."""
    for row in tx.rows("nodes_to_roll", platform=PLATFORM):
        _open_update(tx, row["service_id"], "platform parameters")


def keep_power(tx: Transaction) -> None:
    """A stop or start whose operation ended before it told the hosts (a time-out) is carried out by another one."""
    for row in tx.rows("adrift"):
        _open(tx, row["id"], "power", power.WITHIN, "power")


def renew_certificates(app: App, tx: Transaction) -> None:
    """Certificates are re-issued two months before they end or when their names changed; hosts take them by reload.

    The update that does it also tells the hosts whether services are still advertised on a loopback address.
    """
    for row in tx.rows("certificates"):
        names = certificate_hosts(app.settings, row["name"], row["organization"])
        if not certificates.fits(row["certificate"], row["ca_certificate"], names):
            _open_update(tx, row["id"], "certificate")


def _open_update(tx: Transaction, service: UUID, why: str) -> None:
    # Without a restart: what wants one waits for the maintenance.
    _open(tx, service, "update", WITHIN, why, Note(restart=False))


def _open(
    tx: Transaction, service: UUID, kind: str, within: float, why: str, note: msgspec.Struct | None = None
) -> None:
    row = tx.row("lock_service_by_id", id=service)
    if row is None or row["deleted_at"] is not None:
        return
    log.info("service %s: %s, because of: %s", service, kind, why)
    open_operation(tx, uuid4(), row["organization_id"], service, kind, within, note)
