"""Every service's newest backup is restored now and then to prove that it can be, one at a time on each host."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import msgspec
from psycopg.rows import DictRow

from pgherd.spec import RepositoryStatus
from pgherd.store.db import Transaction
from pgherd.workflows.app import App
from pgherd.workflows.verify import open_scheduled

log = logging.getLogger(__name__)

#: Until the first proof of a service, after its first backup: one that is deleted at once is not worth it.
FIRST_AFTER = timedelta(minutes=10)
#: Until what was not sound, or could not be looked at, is looked at again.
AGAIN_AFTER = timedelta(days=1)


def start_due(app: App, tx: Transaction) -> None:
    """Start what is due, the longest overdue first. What was due while nobody looked is so once."""
    every = timedelta(days=app.settings.verify_days)
    if not every:
        return
    now = datetime.now(UTC)
    busy = {row["host_id"] for row in tx.rows("open_verifications")}
    for row in tx.rows("verify_candidates"):
        if row["host_id"] in busy or not _is_due(row, every, now):
            continue
        tx.row("lock_service_by_id", id=row["id"])
        if tx.row("pending_verify", service_id=row["id"]) is None:
            open_scheduled(tx, row["organization_id"], row["id"])
            busy.add(row["host_id"])
            log.info("the newest backup of service %s is verified", row["id"])


def _is_due(row: DictRow, every: timedelta, now: datetime) -> bool:
    # An operation that timed out or was lost has left no verification.
    tried = max((at for at in (row["at"], row["tried_at"]) if at is not None), default=None)
    if tried is None:
        first = msgspec.convert(row["repository"], RepositoryStatus).backups[0]
        return now - datetime.fromisoformat(first.ended_at) >= FIRST_AFTER
    return bool(now - tried >= (every if row["state"] == "sound" else min(every, AGAIN_AFTER)))
