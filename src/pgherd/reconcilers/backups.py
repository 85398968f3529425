"""Every service is backed up once a day at its time, and what goes wrong with its repository is told once."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
from psycopg.rows import DictRow

from pgherd.model.backup import AGAIN_AFTER, is_due
from pgherd.model.service import Wish
from pgherd.store.db import Transaction
from pgherd.workflows.backup import backups_of, open_scheduled
from pgherd.workflows.nodes import clean

log = logging.getLogger(__name__)

#: Most backups by the schedule that are open at once for one host; the others start as these end.
MOST_AT_ONCE = 2


def start_due(tx: Transaction) -> None:
    """Start what is due, the longest overdue first; what was missed, by whomever's fault, is made up for once."""
    now = datetime.now(UTC)
    open_ = Counter({row["host_id"]: row["open"] for row in tx.rows("open_backups")})
    for row in tx.rows("backup_candidates"):
        status = row["status"] or {}
        known = status.get("repository") or {}
        if open_[row["host_id"]] >= MOST_AT_ONCE or not known.get("ready") or known.get("problem"):
            continue
        if row["failed_at"] is not None and now - row["failed_at"] < timedelta(seconds=AGAIN_AFTER):
            continue
        schedule = msgspec.convert(row["wish"], Wish).backup
        if is_due(schedule, row["created_at"], backups_of(status), known.get("gap_at", ""), now):
            tx.row("lock_service_by_id", id=row["id"])
            if tx.row("pending_backup", service_id=row["id"]) is None:
                open_scheduled(tx, row["organization_id"], row["id"])
                open_[row["host_id"]] += 1
                log.info("service %s is backed up", row["id"])


def tell_problems(tx: Transaction) -> None:
    """What prevents archiving or backups leaves an event when it begins, and one when it is over."""
    for row in tx.rows("changed_problems"):
        _tell(tx, row)


def _tell(tx: Transaction, row: DictRow) -> None:
    problem = clean(row["now"]) if row["now"] else ""
    tx.run("note_problem", service_id=row["service_id"], problem=row["now"])
    tx.row(
        "insert_event", organization_id=row["organization_id"], key="", remote="", command="backup",
        subject=row["name"], result=problem or "archiving and backups work again",
    )  # fmt: skip
