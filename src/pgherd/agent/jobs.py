"""Long work of a host: programs that outlive the agent, each run once under the service's own uid.

A job is a one-shot service of s6, so its process, its log and its end are the supervisor's affair and not the agent's.
What the agent knows is on disk: `HOME/agent/jobs/<node>.<name>/job.json`, its own note of which job it started, and
`exit`, which root's wrapper around the program writes. While that file is there, the program does not run again. A
program that ended without it was killed, or its machine was; it is run again, a few times.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pgherd import failpoints
from pgherd.agent import report
from pgherd.drivers.supervisor import Service, Supervisor
from pgherd.errors import HostFault
from pgherd.home import Home
from pgherd.spec import Job, JobName, JobStatus, Verification
from pgherd.unprivileged import Account

log = logging.getLogger("pgherd.agent")

_ALONE = ("verify",)  # jobs that no other waits for
_TRIES = 3  # runs that are killed until the job is given up
_KILLED = 128  # exit codes from here on: ended by a signal
_LOOK_EVERY = 0.02  # seconds until the end of a program is noticed
_FINISH_PATIENCE = 0.2  # seconds; what follows is mostly done by then, and need not wait for the next look
_GIVE_WAY = ["nice", "-n", "10", "ionice", "-c", "2", "-n", "7"]
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent"}


@dataclass(frozen=True)
class Work:
    """What a job runs, as whom (None: as the caller), and in which control groups.

    `progress` and `complaint` read the last lines of its log, which are a tenant's words: bounded, and for show only.
    `urgent`: it does not wait for its turn. `finish` follows when the program ended well, beside all else, and may
    run again; the job is done when it is. `alone`: no second one of its name on the host, and no other waits for it.
    `network`: see `Service`. `result` reads what the program has found; with that the job is done, however it ended,
    and without it failed. `made`: whether what the program was to make is there, begun at that time or later: it may
    have been killed when all was done but its end. `clear` removes what a killed one has left.
    """

    argv: Sequence[str]
    account: Account | None
    groups: Sequence[Path] = ()
    progress: Callable[[list[str]], float] = lambda lines: 0.0
    complaint: Callable[[list[str]], str] = lambda lines: lines[-1] if lines else ""
    urgent: bool = False
    finish: Callable[[], Future[Any]] | None = None
    alone: bool = False
    network: bool = True
    result: Callable[[], Verification | None] | None = None
    made: Callable[[str], bool] = lambda since: False
    clear: Callable[[], None] = lambda: None


class Record(msgspec.Struct):
    """The agent's note of a job. `tries`: how often it was started; `ended`: its status once nothing follows."""

    id: str
    started_at: str
    tries: int = 0
    ended: JobStatus | None = None


class Jobs:
    """The jobs of all nodes. `most`: how many run at once; the others wait for their turn.

    `ring` is called with a node's id when the program of one of its jobs has ended.
    """

    def __init__(self, home: Home, supervisor: Supervisor, most: int, ring: Callable[[str], None]) -> None:
        self._home, self._supervisor, self._most, self._ring = home, supervisor, most, ring
        self._starting = threading.Lock()
        self._watched: set[str] = set()
        self._finishing: dict[str, Future[Any]] = {}

    def ensure(self, node_id: str, job: Job, work: Work) -> JobStatus:
        """Let the job run, or have run; never waits for its end. One thread a node at a time."""
        record = self._read(node_id, job.name)
        if record is None or record.id != job.id:
            self.end(node_id, job.name, work.clear)
            record = Record(job.id, "")
        if record.ended is not None:
            return record.ended
        code = self._code(node_id, job.name)
        if code is not None:
            return self._ended(node_id, job, record, work, code)
        if self._supervisor.lives(service_name(node_id, job.name)):
            return self._running(node_id, job, record, work)
        if record.tries and work.made(record.started_at):
            (self._directory(node_id, job.name) / "exit").write_text("0")
            return self._ended(node_id, job, record, work, 0)
        if record.tries >= _TRIES:
            return self._close(node_id, job, record, f"It was killed {record.tries} times.")
        if not self._start(node_id, job, record, work):
            return JobStatus(job.id, job.name, "waiting", "other jobs of this host come first")
        return self._running(node_id, job, record, work)

    def look(self, node_id: str, job: Job) -> JobStatus:
        """How a job stands, without doing anything about it."""
        record = self._read(node_id, job.name)
        if record is None or record.id != job.id:
            return JobStatus(job.id, job.name, "waiting")
        return record.ended or JobStatus(job.id, job.name, "running", started_at=record.started_at)

    def end(self, node_id: str, name: str, clear: Callable[[], None] = lambda: None) -> None:
        """Let there be no such job: it is killed if it runs, what it left is cleared, and it is forgotten."""
        self._supervisor.remove(service_name(node_id, name), gently=False)
        clear()
        shutil.rmtree(self._directory(node_id, name), ignore_errors=True)

    def end_others(
        self, node_id: str, wished: Sequence[Job] = (), clear: Mapping[str, Callable[[], None]] | None = None
    ) -> None:
        """End every job of a node but these; `clear`: by name, how what it left is removed."""
        kept = {job.name for job in wished}
        for path in self._home.agent.glob(f"jobs/{node_id}.*"):
            name = path.name.removeprefix(f"{node_id}.")
            if name not in kept:
                self.end(node_id, name, (clear or {}).get(name, lambda: None))

    # --- inside --------------------------------------------------------------------------------------------

    def _start(self, node_id: str, job: Job, record: Record, work: Work) -> bool:
        directory, service = self._directory(node_id, job.name), service_name(node_id, job.name)
        with self._starting:
            if not work.urgent and self._busy(job.name, work):
                return False
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            record.tries += 1
            record.started_at = record.started_at or report.now()
            self._write(node_id, job.name, record)
            failpoints.passing(f"job {job.name} start begin")
            user = work.account.name if work.account else None
            self._supervisor.write(service, Service(
                [*_GIVE_WAY, *work.argv], user=user, env=_ENVIRONMENT, kill_after_ms=1_000, oom_score_adj=300,
                start=False, groups=work.groups, record=directory / "exit", network=work.network,
            ))  # fmt: skip
            self._supervisor.once(service, directory / "exit")
        failpoints.passing(f"job {job.name} start end")
        log.info("node %s: job %s %s started", node_id, job.name, job.id)
        return True

    def _running(self, node_id: str, job: Job, record: Record, work: Work) -> JobStatus:
        if job.id not in self._watched:
            self._watched.add(job.id)
            threading.Thread(target=self._watch, args=(node_id, job), name="job", daemon=True).start()
        lines = self._supervisor.last_lines(service_name(node_id, job.name))
        progress = round(work.progress(lines), 4)
        return JobStatus(job.id, job.name, "running", progress=progress, started_at=record.started_at)

    def _watch(self, node_id: str, job: Job) -> None:
        """Ring when the program has ended; whoever looks at the job sees it too, so nothing depends on this."""
        ended, service = self._directory(node_id, job.name) / "exit", service_name(node_id, job.name)
        while not ended.exists() and self._supervisor.lives(service):
            time.sleep(_LOOK_EVERY)
        self._watched.discard(job.id)
        self._ring(node_id)

    def _ended(self, node_id: str, job: Job, record: Record, work: Work, code: int) -> JobStatus:
        directory = self._directory(node_id, job.name)
        if code >= _KILLED and record.tries < _TRIES:
            (directory / "exit").unlink()
            return self._running(node_id, job, record, work)
        if work.result is not None and (found := work.result()) is not None:
            # Recorded first: an agent that takes over finds either what was found or the record of it.
            failpoints.passing(f"job {job.name} finish begin")
            closed = self._close(node_id, job, record, "" if found.problems else found.impossible, found)
            failpoints.passing(f"job {job.name} finish recorded")
            work.clear()
            failpoints.passing(f"job {job.name} finish end")
            return closed
        if code != 0:
            lines = self._supervisor.last_lines(service_name(node_id, job.name))
            said = work.complaint(lines) if code < _KILLED else f"It was ended by signal {code - _KILLED}."
            return self._close(node_id, job, record, said or f"It ended with code {code}.")
        if work.result is not None:
            return self._close(node_id, job, record, "It ended without saying what it found.")
        if work.finish is not None and not self._finished(job, work.finish):
            return JobStatus(job.id, job.name, "running", progress=1.0, started_at=record.started_at)
        return self._close(node_id, job, record, "")

    def _finished(self, job: Job, finish: Callable[[], Future[Any]]) -> bool:
        """Whether all that follows is done; what fails of it is not the job's failure."""
        finishing = self._finishing.get(job.id)
        if finishing is None:
            failpoints.passing(f"job {job.name} finish begin")
            finishing = self._finishing[job.id] = finish()
            concurrent.futures.wait([finishing], _FINISH_PATIENCE)
        if not finishing.done():
            return False
        del self._finishing[job.id]
        if (error := finishing.exception()) is not None:
            log.warning("after job %s %s: %s", job.name, job.id, error)
        failpoints.passing(f"job {job.name} finish end")
        return True

    def _close(
        self, node_id: str, job: Job, record: Record, reason: str, found: Verification | None = None
    ) -> JobStatus:
        """Nothing follows. What is left of the job goes when the spec has lost it, so that nobody waits for that."""
        record.ended = JobStatus(
            job.id, job.name, "failed" if reason else "done", report.clean(reason, self._home.root),
            0.0 if reason else 1.0, record.started_at, report.now(), found,
        )  # fmt: skip
        self._write(node_id, job.name, record)
        log.info("node %s: job %s %s %s %s", node_id, job.name, job.id, record.ended.state, record.ended.reason)
        return record.ended

    def _busy(self, name: str, work: Work) -> bool:
        """Whether the job must wait for others."""
        found = (path.parent.name.rsplit(".", 1) for path in self._home.agent.glob("jobs/*/job.json"))
        alive = [other for node, other in found if self._supervisor.lives(service_name(node, other))]
        if work.alone:
            return name in alive or len(alive) >= self._most
        return sum(other not in _ALONE for other in alive) >= self._most

    def _code(self, node_id: str, name: JobName) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self._directory(node_id, name) / "exit").read_text())
        return None

    def _directory(self, node_id: str, name: str) -> Path:
        if "/" in node_id or "." in node_id or not node_id:
            raise HostFault("A node's id is not acceptable.")
        return self._home.agent / "jobs" / f"{node_id}.{name}"

    def _read(self, node_id: str, name: JobName) -> Record | None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((self._directory(node_id, name) / "job.json").read_bytes(), type=Record)
        return None

    def _write(self, node_id: str, name: JobName, record: Record) -> None:
        path = self._directory(node_id, name) / "job.json"
        aside = path.with_suffix(".new")
        aside.write_bytes(msgspec.json.encode(record))
        aside.rename(path)


def service_name(node_id: str, name: str) -> str:
    """The name of a job's service directory."""
    return f"job-{node_id}-{name}"
