"""One run of an operation: its steps, its conditional writes, its waits and its one end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from pgherd import failpoints
from pgherd.errors import Conflict, Interrupted, PgherdError, Unavailable
from pgherd.store.db import Transaction
from pgherd.workflows.app import App

log = logging.getLogger(__name__)

#: A wait longer than this gives the job back, so that no thread is held by a slow host. Seconds.
PATIENCE = 2.0
#: The same for a run that came back: the queue hands out the oldest job first, and many waiting ones starve new ones.
LATER_PATIENCE = 0.1
#: Seconds without a worker's sign of life until its jobs are given to others.
SILENCE = 20.0
#: Runs that may end in an error of ours before the operation fails.
FAULTS = 5


class GiveBack(Exception):
    """The run waits for a host; the job comes again when a status arrives, or after some seconds.

    `service`, `mark`: of whom it waits for a status, and where the notifications stood before its last look.
    """

    def __init__(self, reason: str, service: str = "", mark: int = 0) -> None:
        super().__init__(reason)
        self.service, self.mark = service, mark


class Superseded(Exception):
    """Another worker took the job over: this process must not write any more."""


class Run:
    """The attempt that this worker drew. Every write goes through `transaction`."""

    def __init__(self, app: App, row: dict[str, Any]) -> None:
        self.app = app
        self.operation: UUID = row["id"]
        self.kind: str = row["kind"]
        self.service: UUID = row["service_id"]
        self.organization: UUID = row["organization_id"]
        self.attempt: int = row["attempt"]
        self.verdict: str = row["verdict"]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that holds the service and the operation, as long as this attempt is the current one.

        Raises Superseded when another worker drew a later attempt, Interrupted when the operation has ended.
        """
        with self.app.db.transaction() as tx:
            tx.row("lock_service_by_id", id=self.service)
            self._still_mine(tx.row("hold_operation", id=self.operation))
            yield tx
            failpoints.passing(f"{self.kind} before record")

    def check(self) -> None:
        """Raise Superseded or Interrupted: a job that is no longer this run's must not be given back by it."""
        with self.app.db.transaction() as tx:
            self._still_mine(tx.row("look_at_operation", id=self.operation))

    def _still_mine(self, row: Any) -> None:
        if row is None:
            raise Interrupted("The operation is gone.")
        if row["attempt"] != self.attempt:
            raise Superseded
        if row["state"] != "pending":
            raise Interrupted("The operation was ended by another request.")

    def step(self, name: str, work: Callable[[Run], None]) -> None:
        """Make one thing true. `work` may be run again from the top at any time."""
        with self.app.db.transaction() as tx:
            tx.connection.execute("set local synchronous_commit = off")
            self._still_mine(tx.row("look_at_operation", id=self.operation))
            tx.run("note_step", id=self.operation, attempt=self.attempt, step=name)
        failpoints.passing(f"{self.kind} {name}")
        for _ in failpoints.runs():
            work(self)
        failpoints.passing(f"{self.kind} {name} done")

    def until(self, waiting: Callable[[Run], str | None]) -> None:
        """Wait until `waiting` gives no reason to wait any more. Raises GiveBack when patience ends first."""
        assert self.app.wakeups is not None
        service, end = str(self.service), time.monotonic() + (PATIENCE if self.attempt == 1 else LATER_PATIENCE)
        while True:
            mark = self.app.wakeups.mark(service)
            reason = waiting(self)
            if reason is None:
                return
            self.check()
            left = end - time.monotonic()
            if left <= 0:
                raise GiveBack(reason, service, mark)
            self.app.wakeups.wait(service, mark, min(left, 0.5))

    def succeed(self) -> None:
        """End the operation in success."""
        self._end("success", None, "")

    def fail(self, error: PgherdError) -> None:
        """End the operation in failure with the error's reason and message."""
        self._end("failure", error.reason, error.message)

    def _end(self, state: str, reason: str | None, message: str) -> None:
        with self.app.db.transaction() as tx:
            values = {"id": self.operation, "attempt": self.attempt, "state": state}
            tx.row("end_operation", **values, reason=reason, message=message[:500])
            failpoints.passing(f"{self.kind} before end")
        failpoints.passing(f"{self.kind} after end")


def carry_out(app: App, operation: UUID, works: dict[str, Callable[[Run], None]]) -> None:
    """Run the operation once from the top. Raises GiveBack or Superseded; everything else is dealt with here."""
    with app.db.transaction() as tx:
        row = tx.row("begin_run", id=operation)
    if row is None:
        return
    run = Run(app, row)
    try:
        works[run.kind](run)
        if run.verdict:
            run.fail(Conflict(run.verdict))
        else:
            run.succeed()
    except (GiveBack, Superseded):
        raise
    except Interrupted:
        log.info("operation %s was overtaken", operation)
    except Unavailable as error:
        log.warning("operation %s waits: %s", operation, error)
        raise GiveBack(error.message) from error
    except PgherdError as error:
        log.warning("operation %s fails: %s", operation, error)
        run.fail(error)
    except Exception as error:
        log.exception("operation %s met an error of ours", operation)
        with app.db.transaction() as tx:
            counted = tx.row("count_fault", id=operation, attempt=run.attempt)
        if counted is not None and counted["faults"] >= FAULTS:
            run.fail(PgherdError("An internal error; the log of the worker has the details."))
            return
        if counted is None:
            with contextlib.suppress(Interrupted):
                run.check()
            return
        raise GiveBack(repr(error)) from error
