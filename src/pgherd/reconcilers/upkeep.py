"""What waits for maintenance is known since when, and is done in its window: each window tries once.

A window that finds the service unhealthy or another operation at work is not used up: it is looked at again until it
is over.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime
from uuid import UUID, uuid4

import msgspec
from psycopg.rows import DictRow

from pgherd.model.maintenance import Calendar, pending
from pgherd.model.service import Wish
from pgherd.store.db import Transaction
from pgherd.workflows import maintenance
from pgherd.workflows.accept import open_operation
from pgherd.workflows.app import App

log = logging.getLogger(__name__)

#: Maintenances at once on one host, so that it does not restart all its services in the same second.
AT_ONCE = 2


def keep(app: App, tx: Transaction, now: datetime) -> None:
    """Note what waits, forget what does no longer, and start what is due. `now` is the one seam for tests."""
    under_way: Counter[UUID] = Counter()
    for row in tx.rows("maintenance_under_way"):
        under_way[row["host_id"]] = row["operations"]
    for row in tx.rows("upkeep"):
        since = _note(tx, row, now)
        if since is None or under_way[row["host_id"]] >= AT_ONCE or not _may_start(row):
            continue
        if _start(app, tx, row, since, now):
            under_way[row["host_id"]] += 1


def _note(tx: Transaction, row: DictRow, now: datetime) -> datetime | None:
    """Since when the oldest of the service's updates waits; None: none does."""
    wish = msgspec.convert(row["wish"], Wish)
    if row["status"]["state"] != "running":
        return None  # nobody knows; what was noted stays
    known = {kind: datetime.fromisoformat(since) for kind, since in row["updates"].items()}
    waiting = {update.kind for update in pending(row["status"], row["facts"] or {}, wish.version)}
    for kind in known.keys() - waiting:
        tx.run("forget_update", service_id=row["id"], kind=kind)
    for kind in waiting - known.keys():
        tx.run("note_update", service_id=row["id"], kind=kind, since=now)
    return min((known.get(kind, now) for kind in waiting), default=None)


def _may_start(row: DictRow) -> bool:
    return bool(row["runs"] and row["fresh"] and not row["busy"] and not row["status"].get("reason"))


def _start(app: App, tx: Transaction, row: DictRow, since: datetime, now: datetime) -> bool:
    slot = msgspec.convert(row["wish"], Wish).maintenance
    calendar = Calendar(slot, str(row["id"]), app.settings.maintenance_deadline_days, row["maintained_for"])
    begin = calendar.open_window(since, now)
    if begin is None:
        return False
    service = tx.row("lock_service_by_id", id=row["id"])
    if service is None or service["deleted_at"] is not None or service["stopped_at"] is not None:
        return False
    tx.run("use_window", id=row["id"], begin=begin)
    log.info("service %s: maintenance in its window", row["id"])
    open_operation(tx, uuid4(), service["organization_id"], row["id"], "maintenance", maintenance.WITHIN)
    return True
