"""A running node's repository is made and looked at, and its backups are taken: what the agent does beside converging.

Nothing here is part of a spec's coming into force: a service answers before its repository exists; segments wait.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pgherd import failpoints, unprivileged
from pgherd.agent import disk, proofs, report
from pgherd.agent.jobs import Jobs, Work
from pgherd.agent.repositories import Repositories
from pgherd.drivers import pgbackrest
from pgherd.drivers.pgbackrest import Place
from pgherd.drivers.postgres import Archiver, Cluster
from pgherd.errors import HostFault, PgherdError
from pgherd.spec import Backup, Job, JobStatus, NodeSpec, Repository, RepositoryStatus

_LOOK_EVERY = 600.0  # seconds between looks into a repository that nothing happened to
_AGAIN = 30.0  # seconds after one that failed
_PATIENCE = 10.0  # seconds for a look that the node waits for
_VANISHED = "The repository has vanished; backups and segments are gone."
_GIB = 1 << 30
_DAY = 86_400  # seconds
_MOST_HELD = 7  # full backups that stay for what reads the repository


class Beside(Protocol):
    """Runs something in a thread of its own; the node is looked at again when it ends."""

    def __call__(self, work: Callable[[], Any]) -> Future[Any]:
        """Its result or its error, later."""


class Threads:
    """At most `most` at once; they end with the process, whatever they wait for."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    def start(self, work: Callable[[], Any], wake: Callable[[], None]) -> Future[Any]:
        """See Beside; `wake` is called at the end."""
        future: Future[Any] = Future()

        def run() -> None:
            with self._free:
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            wake()

        threading.Thread(target=run, name="repository", daemon=True).start()
        return future


def queue(spec: NodeSpec) -> int:
    """Bytes of segments that may wait for a repository: then they are given up, for the disk must not fill up.

    A quarter of the plan's disk, at least 1 GiB.
    """
    return max(_GIB, spec.disk_bytes // 4)


@dataclass
class Care:
    """What is remembered of one node's repository; `look_at`: when to look into it again (monotonic).

    `attending`: making it or looking into it, which goes on beside; `left`: the backups that the last expiry left.
    """

    status: RepositoryStatus | None = None
    look_at: float = 0.0
    attending: Future[list[Backup]] | None = None
    left: list[Backup] | None = None

    def known(self, repositories: Repositories, spec: NodeSpec) -> RepositoryStatus:
        """What was observed last, by an earlier agent too."""
        if self.status is None:
            service = spec.repository.service_id if spec.repository else ""
            self.status = repositories.record(service).status or RepositoryStatus()
        return self.status


@dataclass(frozen=True)
class Tending:
    """One look after the repository and the jobs of a node whose PostgreSQL runs; it waits for nothing.

    `beside` starts what takes its time; `groups`: the node's control groups; `reserve`: percent of the host's disk;
    `is_read`: whether the data of a node is being made from the repository.
    """

    repositories: Repositories
    jobs: Jobs
    spec: NodeSpec
    cluster: Cluster
    care: Care
    beside: Beside
    groups: list[Path] = field(default_factory=list)
    reserve: int = 0
    is_read: Callable[[], bool] = lambda: False

    def carry_out(self, archiver: Archiver | None, *, idle: bool) -> list[JobStatus]:
        """Do what is due; `care.status` is then what is known. `idle`: nobody waits for the host.

        Failures are the repository's `problem`, never raised.
        """
        repository = self.spec.repository
        self.jobs.end_others(self.spec.node_id, self.spec.jobs, {"verify": partial(proofs.clear, self.cluster)})
        if repository is None:
            return []
        known = before = self.care.known(self.repositories, self.spec)
        statuses = [self.jobs.look(self.spec.node_id, job) for job in self.spec.jobs]
        try:
            self.repositories.installed()
            known = self._attended(repository, known, idle=idle)
            statuses = [self._job(known, job) for job in self.spec.jobs]
            if self.care.left is not None:
                known = msgspec.structs.replace(
                    known, backups=self.care.left, lost="" if self.care.left else known.lost
                )
                self.care.left = None
            known = self._archiving(repository, known, archiver)
        except (PgherdError, OSError) as error:
            known = self._troubled(known, error)
            known = msgspec.structs.replace(known, problem=known.trouble)
        if known != before:
            self._keep(repository, known)
        return statuses

    @property
    def settled(self) -> bool:
        """Whether nothing goes on beside."""
        status = self.care.status
        return self.care.attending is None and (status is None or status.ready or bool(status.trouble))

    # --- the repository ------------------------------------------------------------------------------------

    def _attended(self, repository: Repository, known: RepositoryStatus, *, idle: bool) -> RepositoryStatus:
        """Made when nobody waits for the host, which a job does not wait for; looked into from time to time."""
        attending = self.care.attending
        if attending is not None:
            if not attending.done():
                return known
            self.care.attending, self.care.look_at = None, time.monotonic() + _LOOK_EVERY
            try:
                return self._seen(known, attending.result())
            except (PgherdError, OSError) as error:
                return self._troubled(known, error)
        made = (self.cluster.config / pgbackrest.READY).exists()
        if time.monotonic() >= self.care.look_at and (made or idle or self.spec.jobs):
            self.care.attending = self.beside(partial(self._attend, repository, known.trouble.startswith(_VANISHED)))
        return msgspec.structs.replace(known, ready=made)

    def _attend(self, repository: Repository, vanished: bool) -> list[Backup]:
        """Made anew only at the second look, so that the first one's has been told and kept, whoever dies meanwhile."""
        failpoints.passing("repository make begin")
        self.repositories.ensure_made(repository, self.cluster)
        failpoints.passing("repository make end")
        info = self.repositories.info(self.cluster)
        if not info.exists and vanished:
            try:
                self.repositories.make_anew(repository, self.cluster)
            except PgherdError as error:
                raise HostFault(f"{_VANISHED} {error.message}") from None
            info = self.repositories.info(self.cluster)
        if not info.exists:
            raise HostFault(_VANISHED)
        return info.backups

    def _seen(self, known: RepositoryStatus, backups: list[Backup]) -> RepositoryStatus:
        lost = "" if backups else known.lost
        if not backups and known.trouble.startswith(_VANISHED):
            count = f"{len(known.backups)} backup{'' if len(known.backups) == 1 else 's'}"
            lost = (
                f"The repository was lost and is made anew: {count} and the segments until"
                f" {known.archived_at or report.now()} are gone. One can go back again from the next backup on."
            )
        return msgspec.structs.replace(known, ready=True, backups=backups, trouble="", lost=lost)

    def _troubled(self, known: RepositoryStatus, error: PgherdError | OSError) -> RepositoryStatus:
        self.care.look_at = time.monotonic() + _AGAIN
        return msgspec.structs.replace(known, trouble=report.describe(error, self._root))

    def _archiving(
        self, repository: Repository, known: RepositoryStatus, archiver: Archiver | None
    ) -> RepositoryStatus:
        """What waits and why. Until there is a repository, its trouble is the reason."""
        if archiver is None:
            return msgspec.structs.replace(known, problem=known.trouble)
        place, account = self.repositories.place(repository, self.cluster), self.cluster.account
        problems, gap = [known.trouble] if known.trouble else [], known.gap_at
        if archiver.wal != known.wal or archiver.fails:
            gap = gap_at(place, account)
        if archiver.fails and archiver.waiting and known.ready:
            why = push_error(place, account) or "the repository takes no segments"
            said = report.clean(f"{archiver.waiting} WAL segments wait to be archived: {why}", self._root)
            problems.append(said)
        return msgspec.structs.replace(
            known, wal=archiver.wal[:64], archived_at=archiver.at[:32], waiting=archiver.waiting,
            gap_at=gap, problem=" ".join(problems),
        )  # fmt: skip

    def _keep(self, repository: Repository, known: RepositoryStatus) -> None:
        self.care.status = known
        record = self.repositories.record(repository.service_id)
        record.status = known
        with contextlib.suppress(OSError):
            self.repositories.note(repository.service_id, record)

    @property
    def _root(self) -> Path:
        return self.repositories.home.root

    # --- jobs ----------------------------------------------------------------------------------------------

    def _job(self, known: RepositoryStatus, job: Job) -> JobStatus:
        """A backup needs its repository; when that cannot be had now, the job fails with the reason."""
        if job.name in ("backup", "verify") and not known.ready:
            if known.trouble:
                return JobStatus(job.id, job.name, "failed", known.trouble)
            return JobStatus(job.id, job.name, "waiting", "the repository is being made")
        return self.jobs.ensure(self.spec.node_id, job, self._work(job))

    def _work(self, job: Job) -> Work:
        program, config = self.repositories.installed(), self.cluster.config
        if job.name == "verify":
            free = disk.kept_free(self.cluster, self.reserve)
            return proofs.work(self.repositories, self.spec, self.cluster, job, self.groups, free)
        if job.name != "backup":
            raise HostFault(f"This host knows no job {job.name}.")
        argv = pgbackrest.backup(program, config, full=job.full, fast=not job.scheduled)
        words = pgbackrest.progress, pgbackrest.complaint
        finish = lambda: self.beside(self._expire)  # noqa: E731
        return Work(argv, self.cluster.account, self.groups, *words, finish=finish, made=self._taken)

    def _taken(self, since: str) -> bool:
        """Whether there is a backup that began at `since` or later; pgBackRest's times are whole seconds."""
        begun = datetime.fromisoformat(since).replace(microsecond=0)
        with contextlib.suppress(HostFault):
            known = self.repositories.info(self.cluster, timeout=_PATIENCE).backups
            return any(datetime.fromisoformat(backup.started_at) >= begun for backup in known)
        return False

    def _expire(self) -> None:
        """Let go what the plan does not keep; look at what is left, so that a backup is seen when its job is done.

        While a fork, a restore or a proof reads the repository, what it may need stays until the next backup.
        """
        assert self.spec.repository is not None
        info = self.repositories.info(self.cluster)
        fulls = needed(info.backups, self.spec.repository.keep, datetime.now(UTC))
        if self.is_read() or self._is_proven():
            fulls += _MOST_HELD
        if fulls < sum(not backup.parent for backup in info.backups):
            program, config = self.repositories.installed(), self.cluster.config
            expire = pgbackrest.expire(program, config, fulls=fulls)
            self.repositories.run(expire, self.cluster.account, timeout=600)
            info = self.repositories.info(self.cluster)
        self.care.left = info.backups

    def _is_proven(self) -> bool:
        looked = (self.jobs.look(self.spec.node_id, job) for job in self.spec.jobs if job.name == "verify")
        return any(status.state == "running" for status in looked)


def needed(backups: list[Backup], keep: int, now: datetime) -> int:
    """How many full backups are needed so that `keep` sound backups stay and reach back `keep` - 1 days.

    `backups`: the oldest first. Backups by hand in between never shorten the time that one can go back.
    """
    fulls = sound = 0
    for backup in reversed(backups):
        sound += not backup.damaged
        if backup.parent:
            continue
        fulls += 1
        age = now - datetime.fromisoformat(backup.ended_at)
        if sound >= keep and age.total_seconds() >= (keep - 1) * _DAY and not backup.damaged:
            break
    return max(1, fulls)


def push_error(place: Place, account: unprivileged.Account | None) -> str:
    """Why pgBackRest could not push a segment, as it noted it beside those on their way; empty: it did not say."""
    directory = place.spool / "archive" / pgbackrest.STANZA / "out"
    argv = ["/bin/sh", "-c", 'cat "$1"/*.error 2>/dev/null | head -c 4000', "sh", str(directory)]
    said = unprivileged.run(account, argv, timeout=5).out.decode(errors="replace")
    if refusal := re.search(r"HTTP request failed with [^:\n]*", said):
        code = re.search(r"<Code>(\w{1,60})</Code>", said)  # of S3: the clock, the key, the bucket
        return f"{refusal[0]} {code[1]}" if code else refusal[0]
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.strip().isdigit()]
    return next((line for line in lines if not line.endswith(":")), lines[0] if lines else "")


def gap_at(place: Place, account: unprivileged.Account | None) -> str:
    """When segments were given up last; empty: never."""
    answer = unprivileged.run(account, ["stat", "-c", "%Y", str(place.spool / "given-up")], timeout=5)
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(int(answer.out), UTC).isoformat().replace("+00:00", "Z")
    return ""
