"""When each reconciler runs. One worker of all does it at a time; missing a round loses nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pgherd.errors import Unavailable
from pgherd.reconcilers import backups, operations, services, telemetry, upkeep, verifications
from pgherd.store.db import Transaction
from pgherd.workflows.app import App
from pgherd.workflows.worker import Slot

log = logging.getLogger(__name__)


class Rounds:
    """Every reconciler with its interval in seconds."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._plan: list[tuple[float, Callable[[Transaction], None]]] = [
            (2, operations.end_overdue),
            (2, operations.find_lost),
            (2, services.finish_deletes),
            (5, operations.requeue_stalled),
            (10, operations.wake_far),
            (10, backups.start_due),
            (10, backups.tell_problems),
            (10, lambda tx: verifications.start_due(app, tx)),
            (10, services.remove_kept),
            (10, services.tell_losses),
            (10, services.roll_platform),
            (10, services.keep_power),
            (5, lambda tx: upkeep.keep(app, tx, datetime.now(UTC))),
            (60, telemetry.forget_questions),
            (300, lambda tx: telemetry.roll_up(tx, 300)),
            (900, lambda tx: telemetry.roll_up(tx, 1800, 7200, 86_400)),
            (3600, lambda tx: services.renew_certificates(app, tx)),
            (3600, operations.purge),
        ]
        self._due = [0.0] * len(self._plan)

    def __call__(self, slot: Slot) -> None:
        """Run what is due, each in a transaction of its own, so that one failure does not stop the others."""
        slot.requeue_orphans()
        for index, (interval, reconcile) in enumerate(self._plan):
            now = time.monotonic()
            if now < self._due[index]:
                continue
            self._due[index] = now + interval
            try:
                with self._app.db.transaction() as tx:
                    mine = tx.row("reconcile_lock")
                    if mine is not None and mine["mine"]:
                        reconcile(tx)
            except Unavailable:
                raise
            except Exception:
                log.exception("a reconciler failed; it is tried again")
