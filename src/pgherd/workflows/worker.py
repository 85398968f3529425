"""The worker: Procrastinate moves the jobs, this process carries operations out.

Procrastinate 3.10 takes a job over by heartbeat only and lets a worker finish a job that is no longer its
own. So each worker holds a slot by a session advisory lock, whoever finds a slot's lock free requeues its
jobs at once, and a worker whose attempt is superseded, or whose job is another's, ends itself and leaves it alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import procrastinate
import procrastinate.manager
import psycopg
from procrastinate.jobs import Job
from psycopg.rows import DictRow, dict_row

from pgherd.errors import Unavailable
from pgherd.store.db import RECONNECT, Transaction
from pgherd.workflows import (
    access,
    adopt,
    backup,
    create,
    delete,
    maintenance,
    pools,
    power,
    restore,
    undelete,
    update,
    verify,
)
from pgherd.workflows.app import App
from pgherd.workflows.run import SILENCE, GiveBack, Run, Superseded, carry_out
from pgherd.workflows.wakeups import Wakeups

log = logging.getLogger(__name__)

WORKS: dict[str, Callable[[Run], None]] = {
    "create": create.carry_out,
    "update": update.carry_out,
    "delete": delete.carry_out,
    "access": access.carry_out,
    "pools": pools.carry_out,
    "adopt": adopt.carry_out,
    "backup": backup.carry_out,
    "power": power.carry_out,
    "maintenance": maintenance.carry_out,
    "verify": verify.carry_out,
    "restore": restore.carry_out,
    "undelete": undelete.carry_out,
}

HEARTBEAT = 5.0  # seconds between a worker's signs of life
MOST_SLOTS = 64


class _Comeback(procrastinate.BaseRetryStrategy):
    """A job that gave back comes again after seconds, more the longer it waits, or at once when a status wakes it.

    `looked`: by the job's id, of which service its run waits for a status, and where the notifications stood when it
    looked last.
    """

    def __init__(self) -> None:
        self.looked: dict[int, tuple[str, int]] = {}

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> procrastinate.RetryDecision | None:
        if isinstance(exception, GiveBack) and exception.service and job.id:
            self.looked[job.id] = exception.service, exception.mark
        wait = min(0.5 + job.attempts / 8, 4.0) if isinstance(exception, GiveBack) else min(1.0 + job.attempts, 10.0)
        return procrastinate.RetryDecision(retry_at=datetime.now(UTC) + timedelta(seconds=wait))


class Slot:
    """This worker's place among the workers, held as long as the connection lives; lost with it, it takes a new one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._guard = threading.Lock()
        self._worker_id: int | None = None
        self._enter()

    def _enter(self) -> None:
        self._connection: psycopg.Connection[DictRow] = psycopg.connect(
            self._url, autocommit=True, application_name="pgherd-worker-slot", row_factory=dict_row
        )
        self.number = next(n for n in range(MOST_SLOTS) if self._take(n))
        log.info("this worker has slot %d", self.number)
        if self._worker_id is not None:
            self._run("record_slot", slot=self.number, worker_id=self._worker_id)

    def _run(self, name: str, **values: Any) -> list[DictRow]:
        tx = Transaction(self._connection)
        return tx.rows(name, **values)

    def _take(self, number: int) -> bool:
        return bool(self._run("take_slot", slot=number)[0]["taken"])

    def requeue_orphans(self, *, at_start: bool = False) -> None:
        """Give back the jobs of slots whose worker is gone; at the start also those of this slot's former worker.

        Raises psycopg.OperationalError when the metadata does not answer; the next call connects anew.
        """
        with self._guard:
            if self._connection.closed:
                self._enter()
            for row in self._run("slots"):
                if row["slot"] == self.number:
                    if at_start:
                        self._run("requeue_slot", slot=row["slot"])
                elif self._take(row["slot"]):
                    try:
                        self._run("requeue_slot", slot=row["slot"])
                    finally:
                        self._run("release_slot", slot=row["slot"])

    def record(self, worker_id: int) -> None:
        """Say under which id the queue knows this worker from now on."""
        with self._guard:
            self._worker_id = worker_id
            self._run("record_slot", slot=self.number, worker_id=worker_id)


def _queue(app: App, url: str, slot: Slot) -> procrastinate.App:
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=3, reconnect_timeout=RECONNECT)
    queue = procrastinate.App(connector=connector)
    _outlive_outages(queue.job_manager)
    comeback = _Comeback()
    assert app.wakeups is not None
    _settle_own_jobs(queue, app.wakeups, comeback)

    @queue.task(name="carry_out", queue="operations", retry=comeback)
    def _carry_out(operation: str) -> None:
        try:
            carry_out(app, UUID(operation), WORKS)
        except Superseded:
            _end_superseded(operation)

    register = queue.job_manager.register_worker

    async def register_worker() -> int:
        worker_id = await register()
        slot.record(worker_id)
        return worker_id

    queue.job_manager.register_worker = register_worker  # type: ignore[method-assign]
    return queue


def _outlive_outages(jobs: procrastinate.manager.JobManager) -> None:
    """Keep what runs beside the queue's loop alive while the metadata restarts: without, each job is found late.

    Procrastinate 3.10 ends these tasks at the first refused connection, and nobody notices.
    """
    listen, beat = jobs.listen_for_jobs, jobs.update_heartbeat

    async def listen_for_jobs(**how: Any) -> None:
        while True:
            try:
                await listen(**how)
            except procrastinate.exceptions.ConnectorException as error:
                log.warning("listening for jobs failed, trying again: %s", error)
            await asyncio.sleep(1)

    async def update_heartbeat(worker_id: int) -> None:
        with contextlib.suppress(procrastinate.exceptions.ConnectorException):
            await beat(worker_id)

    jobs.listen_for_jobs = listen_for_jobs  # type: ignore[method-assign]
    jobs.update_heartbeat = update_heartbeat  # type: ignore[method-assign]


#: Procrastinate's own functions, for a job that this worker still has.
_OURS = """
with ours as materialized (
    select id from procrastinate_jobs where id = %(job)s and worker_id = %(worker)s and status = 'doing' for update
)
"""
_FINISH = f"{_OURS} select procrastinate_finish_job_v1(id, %(status)s::procrastinate_job_status, true) from ours"
_GIVE_BACK = f"{_OURS} select procrastinate_retry_job_v2(id, %(at)s, null, null, null) from ours"


def _settle_own_jobs(queue: procrastinate.App, wakeups: Wakeups, comeback: _Comeback) -> None:
    """Finish and give back only what is this worker's, and until the metadata has it.

    Procrastinate 3.10 settles a job whoever has it, and forgets one when the metadata does not answer at that moment:
    the job stays this worker's, and its operation pending until the deadline.
    """

    async def settle(job: Job, query: LiteralString, **values: Any) -> None:
        in_doubt = False
        while True:
            try:
                found = await queue.connector.execute_query_all_async(query, job=job.id, worker=job.worker_id, **values)
            except procrastinate.exceptions.ConnectorException as error:
                log.warning("job %s could not be settled, trying again: %s", job.id, error.__cause__ or error)
                in_doubt = True  # the metadata may have done it before the connection was lost
                await asyncio.sleep(1)
                continue
            if not found and not in_doubt:
                _end_superseded(str(job.task_kwargs.get("operation")))
            return

    async def finish_job(job: Job, status: procrastinate.jobs.Status, delete_job: bool) -> None:
        assert delete_job
        await settle(job, _FINISH, status=status.value)

    async def retry_job(job: Job, retry_at: datetime | None = None, **_: Any) -> None:
        await settle(job, _GIVE_BACK, at=retry_at)
        # A status that came between the run's last look and now could wake nobody.
        service, mark = comeback.looked.pop(job.id or 0, ("", 0))
        if service and wakeups.mark(service) != mark:
            with contextlib.suppress(procrastinate.exceptions.ConnectorException):
                await queue.connector.execute_query_async("select wake_jobs(%(service)s::uuid)", service=service)

    queue.job_manager.finish_job = finish_job  # type: ignore[method-assign]
    queue.job_manager.retry_job = retry_job  # type: ignore[assignment,method-assign]


def _end_superseded(operation: str) -> None:
    log.error("operation %s was taken over by another worker; this one ends itself", operation)
    os._exit(75)


def run_worker(app: App, url: str, reconcile: Callable[[Slot], None]) -> None:
    """Work until SIGTERM. `reconcile` is called every two seconds in a thread of its own."""
    assert app.wakeups is not None
    app.wakeups.start()
    slot = Slot(url)
    slot.requeue_orphans(at_start=True)
    queue = _queue(app, url, slot)

    def keep_reconciling() -> None:
        while True:
            try:
                reconcile(slot)
            except (psycopg.OperationalError, Unavailable) as error:
                log.warning("the reconcilers wait for the metadata: %s", error)
            except Exception:
                log.exception("a reconciler failed; it is tried again")
            time.sleep(2)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        size = app.settings.worker_concurrency
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(size, thread_name_prefix="operation"))
        threading.Thread(target=keep_reconciling, name="reconcilers", daemon=True).start()
        async with queue.open_async():
            await queue.run_worker_async(
                name=f"slot-{slot.number}",
                concurrency=size,
                fetch_job_polling_interval=2.0,
                delete_jobs="always",
                update_heartbeat_interval=HEARTBEAT,
                stalled_worker_timeout=SILENCE,
                shutdown_graceful_timeout=5.0,
            )

    asyncio.run(work())
    os._exit(0)  # threads that still wait for a host must not hold the end up; their jobs are run again
