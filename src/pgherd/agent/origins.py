"""Data that a node gets: from another node's files or from a repository; and the exchange for what it had.

The new data is made aside, in `data/making`, by the node's own user; `data/made-<id>` when it is complete and
recovered. It comes into force by a rename while the server is stopped; what was there before is then
`data/before-<id>`, and is recovered in that place when it is to come back. Root's record says which exchange has begun
and which is done, so each happens once whenever the agent dies.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pgherd import failpoints
from pgherd.agent import held
from pgherd.agent.archive import Archive, Reach, mark, newest_timeline, window, words
from pgherd.agent.makings import Making
from pgherd.agent.repositories import Repositories
from pgherd.drivers import disk, live_copy, pgbackrest, postgres, recovery
from pgherd.drivers.postgres import Cluster, NotReady
from pgherd.drivers.recovery import Recovered
from pgherd.errors import HostFault, PgherdError
from pgherd.spec import Backup, Origin, Repository
from pgherd.unprivileged import Answer, run

_DAY = 86_400.0  # seconds; a copy or a restore that takes longer is given up
_ROOM = 512 << 20  # bytes beside the data itself: segments while it recovers
#: The id of what is made in place of lost data: all that can be had, whatever is missing.
LOST = "lost"
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
#: pgBackRest fetches segments ahead in a process of its own, which outlives the recovery that they were for.
_END_FETCHING = (
    'for f in $(grep -lFse archive-get:async /proc/[0-9]*/cmdline | xargs -r grep -lFse "$2"); do'
    ' p=${f#/proc/}; p=${p%/cmdline}; [ "$p" = $$ ] || kill -9 "$p"; done 2>/dev/null; rm -rf "$1"'
)


class Impossible(HostFault):
    """The wished data cannot be had, however often it is tried; the message is for the tenant."""


@dataclass(frozen=True)
class Made:
    """What was made: the timelines before and after, and the last transaction's time where it is not all there is.

    `missing`: the segment of the archive for want of which it is not.
    """

    left: int = 0
    timeline: int = 0
    until: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Source:
    """A cluster of this host that the data comes from, and whether it runs.

    `stops`: it shall not run, but does still; `stopped`: it shall not run, and does not.
    """

    cluster: Cluster
    lives: bool
    stops: bool = False
    stopped: bool = False


@dataclass
class Maker:
    """Makes the data of one origin for the cluster of one node.

    `source`: the node that is copied, or whose newest segment the archive needs; `repository`: what is restored;
    `reserve`: bytes of disk that stay free; `kept`: the origin from before which there is data that can come back.
    """

    repositories: Repositories
    origin: Origin
    cluster: Cluster
    source: Source | None
    repository: Repository | None
    cores: int
    making: Making
    reserve: int = 0
    kept: str = ""

    @property
    def data(self) -> Path:
        """The directory that the node's user owns."""
        return self.cluster.directory / "data"

    @property
    def aside(self) -> Path:
        """What is not complete yet. What comes back stays where it was kept, so that nothing else is taken for it."""
        return self.data / (f"before-{self.kept}" if self.origin.undo else "making")

    @property
    def spool(self) -> Path:
        """Where segments and locks lie meanwhile, apart from those of the living server: a restore empties its spool,
        and who fetches segments keeps those out that push them."""
        return self.data / "spool-making"

    @property
    def taken(self) -> str:
        """The name of what comes into force."""
        return self.aside.name if self.origin.undo else f"made-{self.origin.id}"

    def make(self) -> Made:
        """Let `taken` be there. Raises Impossible, or HostFault when trying again may help."""
        if not _ID.fullmatch(self.origin.id):
            raise HostFault("An origin's id is not acceptable.")
        try:
            return self._undone() if self.origin.undo else self._brought()
        finally:
            if self.spool.exists():  # a copy of files fetches nothing
                with contextlib.suppress(HostFault):
                    self._shell(_END_FETCHING, self.spool, self._config)

    def _brought(self) -> Made:
        # An agent that died after the last step has left what it made, but no word of it.
        taken_back = '[ ! -d "$1" ] || { rm -rf "$2" && mv -T "$1" "$2"; }'
        self._shell(taken_back, self.data / self.taken, self.aside)
        made = self._copied() or self._restored()
        self._shell('mv -T "$1" "$2" && sync "$3"', self.aside, self.data / self.taken, self.data)
        return made

    # --- the three ways ------------------------------------------------------------------------------------

    def _copied(self) -> Made | None:
        """From the files of a running node; None where that is not what is wanted or not possible."""
        source = self.source
        if source is None or self.origin.target or not source.lives:
            return None
        self.making.step = "copies the data"
        self._clear()
        if not disk.shares_blocks(self.data):
            self._check_room(disk.size(source.cluster.account, source.cluster.directory / "data", ["pgdata"]))
        psql, env = postgres.session(source.cluster, "postgres", {"statement_timeout": "0", "lock_timeout": "0"})
        try:
            live_copy.copy(
                psql, env, int(source.cluster.program.major), source.cluster.account, source.cluster.pgdata,
                self.cluster.account, self.aside, timeout=_DAY,
            )  # fmt: skip
        except HostFault:
            if self.repository is None:
                raise
            return None
        failpoints.passing("origin copied")
        self._recover(self.aside, "", "", "latest", signal=False)
        return Made()

    def _restored(self) -> Made:
        """From a repository, the newest fitting backup first; an older one when that cannot be read."""
        repository, archive = self._configured(), self._archive
        marked = ""
        if self.source is not None and self.source.lives:
            marked = mark(self.source.cluster, self.origin.target, self.making)
        self._go_on()
        behind = self._behind(marked)
        if behind and not self.origin.target:
            raise Impossible(self._refusal(self._known(), behind))
        info = archive.info()
        timeline = self.origin.timeline or newest_timeline(info)
        reach = archive.reach(timeline, marked)
        target = datetime.fromisoformat(self.origin.target) if self.origin.target else None
        found = recovery.usable(info.backups, timeline, reach.history, target)
        if not found:
            raise Impossible(self._refusal(info.backups, "there is no backup from which that can be restored"))
        last: PgherdError | None = None
        for backup in found:
            self._go_on()
            try:
                return self._restored_from(backup, info.backups, reach, behind, complete=bool(marked))
            except (Impossible, NotReady):
                raise
            except PgherdError as error:
                last = error  # the next older backup and more of the archive give the same
        raise HostFault(f"No backup can be restored: {last.message if last else ''}", detail=repository.service_id)

    def _restored_from(
        self, backup: Backup, known: Sequence[Backup], reach: Reach, behind: str, *, complete: bool
    ) -> Made:
        """`behind`: why the archive lacks what was written last; `complete`: it has all that was written until now."""
        recovered, missing = self._reached(backup, self.origin.target, reach)
        if recovered.short and complete and not missing:
            # The archive holds all that was written until after the target: no transaction follows it.
            recovered, missing = self._reached(backup, "", reach)
        elif recovered.short and recovery.covers(recovered, self.origin.target):
            until = recovered.until
            recovered, missing = self._reached(backup, "", replace(reach, segment=""))
            if recovered.until != until:
                raise NotReady("The archive has grown meanwhile.")
        if missing and self.origin.id != LOST:
            lacks = f"the archive lacks WAL segment {missing}, so what was written from there on cannot be had"
            raise Impossible(self._refusal(known, lacks, recovered.until, missing))
        if recovered.short:
            late = "that lies after the last transaction in the archive" + (f" ({behind})" if behind else "")
            raise Impossible(self._refusal(known, late, recovered.until))
        left = int(backup.wal_start[:8], 16)
        until = "" if complete and not self.origin.target else recovered.until
        return Made(reach.timeline or left, recovered.timeline, until, missing)

    def _reached(self, backup: Backup, target: str, reach: Reach) -> tuple[Recovered, str]:
        """What a recovery came to, and the segment for want of which it did not come as far as it has to."""
        for _ in range(2):
            recovered = self._attempt(backup, target, reach.timeline)
            newest = reach.segment if recovered.short or not target else ""
            missing = recovery.missing(recovered, reach.timeline, reach.history, newest)
            if not missing or not self._archive.holds(missing):
                break  # else it arrived meanwhile: segments do not come in their order
        return recovered, missing

    def _attempt(self, backup: Backup, target: str, timeline: int) -> Recovered:
        self.making.step = f"restores backup {backup.name}"
        program, config = self.repositories.installed(), self._config
        options = ["--type=none", "--job-retry=1", "--job-retry-interval=1"]
        argv = pgbackrest.restore(
            program, config, backup=backup.name, target=options, pgdata=self.aside, delta=True, archive=True
        )
        left = run(self.cluster.account, ["test", "-e", str(self.aside)]).code == 0
        self._check_room(backup.size)
        self._ensure_aside()
        answer = self._run(argv, timeout=_DAY)
        if answer.code != 0 and left:
            self._clear()  # what an earlier run left may be in its way
            answer = self._run(argv, timeout=_DAY)
        if answer.code != 0:
            self._clear()
            raise HostFault(f"Backup {backup.name} cannot be restored.", detail=words(answer))
        failpoints.passing("origin restored")
        self.making.step = "replays the archive"
        fetch = pgbackrest.fetch(program, config, self.aside)
        return self._recover(self.aside, fetch, target, str(timeline), signal=True)

    def _undone(self) -> Made:
        """From what an earlier exchange put aside. It goes on on a timeline of its own, so that the archive, which has
        got the one that is left now, holds no two histories of one name."""
        self.making.step = "brings the data back"
        repository = self._configured()
        script = '[ -d "$1" ] || exit 9; cp -n "$2"/pg_wal/*.history "$1/pg_wal/" 2>/dev/null; exit 0'
        argv = ["/bin/sh", "-c", script, "sh", str(self.aside), str(self.cluster.pgdata)]
        if not self.kept or run(self.cluster.account, argv).code == 9:
            raise Impossible("There is no earlier data to bring back.")
        # All its segments are here. The archive may have others of these names: of a restore that came after an undo
        # which ended too early, and took the timeline that this data had been given.
        fetch = pgbackrest.fetch(self.repositories.installed(), self._config, self.aside)
        recovered = self._recover(self.aside, f'[ ! -e "pg_wal/%f" ] || exit 1; {fetch}', "", "current", signal=True)
        if not recovered.timeline:
            raise HostFault("The earlier data does not recover.", detail=repository.service_id)
        return Made(0, recovered.timeline)

    def _check_room(self, wanted: int) -> None:
        """Raise Impossible when `wanted` bytes of data, less what is there of them already, would fill the disk."""
        there = disk.size(self.cluster.account, self.data, [self.aside.name])
        need, free = max(0, wanted * 11 // 10 + _ROOM - there), disk.space(self.data).free - self.reserve
        if free < need:
            raise Impossible(
                f"Not enough disk: {need >> 20} MiB are needed, {max(0, free) >> 20} MiB are free above what is kept"
                " for the services."
            )

    # --- recovery ------------------------------------------------------------------------------------------

    def _recover(self, pgdata: Path, fetch: str, target: str, timeline: str, *, signal: bool) -> Recovered:
        """Recover; with `signal` from the archive too, and on to a new timeline. May run again: on to another one."""
        self._go_on()
        if signal:
            self._shell('touch "$1/recovery.signal"', pgdata)
        argv = recovery.command(self.cluster.program.bin, self.cluster.config, pgdata, fetch, target, timeline)
        statements = "SELECT 1;\n\n" if self.origin.own else recovery.DETACHING
        answer = self._run(argv, stdin=statements.encode(), timeout=_DAY)
        failpoints.passing("origin recovered")
        found = recovery.parse(answer.err)
        if answer.code != 0 and not found.short:
            said = recovery.complaint(answer.err)
            unread = said.startswith("could not restore file")
            raise HostFault(
                "The archive cannot be read." if unread else "The data does not recover.", detail=said[:300]
            )
        if not found.timeline:
            return found
        shown = run(self.cluster.account, ["cat", str(pgdata / "pg_wal" / f"{found.timeline:08X}.history")])
        left, end = max(recovery.parse_history(shown.out.decode(errors="replace")).items(), default=(0, found.end))
        return replace(found, left=left, end=end)

    def _behind(self, marked: str) -> str:
        """Why the archive lacks what the source wrote last; empty: it has that, or nobody else has."""
        source = self.source
        if source is None or marked or self.repository is None:
            return ""
        if source.lives:
            return "what was written last does not arrive in the archive"
        if source.stops:
            raise NotReady("The source is being stopped.")
        self.making.step = "archives the rest"
        try:
            if held.is_there(source.cluster):
                if source.stopped:
                    held.ensure_ended(source.cluster)
                self.repositories.push_rest(self.repository, source.cluster)
            return ""
        except HostFault as error:
            return f"what was written last does not go into the archive: {error.message}"

    # --- the repository ------------------------------------------------------------------------------------

    @property
    def _config(self) -> Path:
        return self.cluster.directory / "origin"

    @property
    def _groups(self) -> list[int]:
        """The group of the repository's owner, who is another when it is another service's."""
        if self.repository is None or self.cluster.account is None:
            return []
        gid = self.repositories.record(self.repository.service_id).gid
        return [gid] if gid and gid != self.cluster.account.gid else []

    def _configured(self) -> Repository:
        if self.repository is None:
            raise Impossible("The service has no backup.")
        self._config.mkdir(mode=0o750, exist_ok=True)
        if self.cluster.account is not None:
            os.chown(self._config, 0, self.cluster.account.gid)
        place = pgbackrest.Place(
            self.aside, self.spool, self.cluster.port, self.spool, self._config,
            self.repositories.directory(self.repository.service_id) / "repo",
        )  # fmt: skip
        self.repositories.install(self.repository, place, self.cluster.account, processes=self.cores)
        self._shell('[ -d "$1" ] || mkdir -m 700 "$1"', self.spool)
        return self.repository

    @property
    def _archive(self) -> Archive:
        return Archive(
            self.repositories.installed(), self._config, lambda argv, seconds: self._run(argv, timeout=seconds)
        )

    def _known(self) -> list[Backup]:
        """The backups, if they can be looked at now."""
        with contextlib.suppress(HostFault):
            return self._archive.info().backups
        return []

    def _refusal(self, backups: Sequence[Backup], why: str, until: str = "", missing: str = "") -> str:
        """Why it cannot be had, with the possible times."""
        asked = f"{self.origin.target}: " if self.origin.target else ""
        possible = window(backups, until, missing) if backups else "no backup is known yet"
        return f"recovery-backup-time: {asked}{why}; {possible}."

    # --- as the node's user --------------------------------------------------------------------------------

    def _run(self, argv: Sequence[str], *, timeout: float, stdin: bytes = b"") -> Answer:
        return run(self.cluster.account, argv, stdin=stdin, timeout=timeout, limit=16 << 20, groups=self._groups)

    def _shell(self, script: str, *paths: Path) -> None:
        answer = run(self.cluster.account, ["/bin/sh", "-c", script, "sh", *map(str, paths)], timeout=600)
        if answer.code != 0:
            raise HostFault("A node's data cannot be put in place.", detail=answer.err[-300:])

    def _ensure_aside(self) -> None:
        self._shell('[ -d "$1" ] || mkdir -m 700 "$1"', self.aside)

    def _clear(self) -> None:
        self._go_on()
        self._shell('rm -rf "$1" && mkdir -m 700 "$1"', self.aside)

    def _go_on(self) -> None:
        if self.making.cancelled.is_set():
            raise HostFault("It is not wanted any more.")
