"""Every operation ends: by the clock when its deadline passed, by a new job when its job was lost."""

from __future__ import annotations

import logging

from pgherd.store.db import Transaction
from pgherd.workflows.accept import defer
from pgherd.workflows.run import SILENCE

log = logging.getLogger(__name__)


def end_overdue(tx: Transaction) -> None:
    """A pending operation whose deadline passed ends as a time-out. The API does the same when it is asked."""
    for row in tx.rows("overdue_operations"):
        end_one_overdue(tx, row)
        log.warning("operation %s (%s) timed out at step %r", row["id"], row["kind"], row["step"])


def end_one_overdue(tx: Transaction, row: dict[str, object]) -> None:
    """End one, with the step that it did not get over."""
    words = f"The operation did not end in time; its last step was: {row['step'] or 'waiting for a worker'}."
    tx.row("end_operation", id=row["id"], attempt=None, state="timeout", reason="unavailable", message=words)


def find_lost(tx: Transaction) -> None:
    """A pending operation without a job gets a new one: the operation's row is the truth, not the job's."""
    for row in tx.rows("operations_without_job"):
        log.warning("operation %s lost its job; it gets a new one", row["id"])
        defer(tx, row["id"], row["service_id"], row["kind"])


def wake_far(tx: Transaction) -> None:
    """A job that comes back only in minutes was put off by a clock that jumped; it comes back now."""
    tx.run("wake_far_jobs")


def requeue_stalled(tx: Transaction) -> None:
    """Jobs of a worker that gives no sign of life (stopped, cut off) go to the others."""
    tx.rows("requeue_stalled", silence=SILENCE)


def purge(tx: Transaction) -> None:
    """What ended a month ago is forgotten, operations and then their services; events after a year."""
    tx.run("purge_operations")
    tx.run("purge_services")
    tx.run("purge_events")
