"""Data that a node gets: from another node's files or from a repository; and the exchange for what it had.

The new data is made aside, in `data/making`, by the node's own user; `data/made-<id>` when it is complete and
recovered. It comes into force by a rename while the server is stopped; what was there before is then
`data/before-<id>`. Root's record says which exchange has begun and which is done, so each happens once whenever the
agent dies.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pgherd import failpoints
from pgherd.agent.makings import Making
from pgherd.agent.repositories import Repositories
from pgherd.drivers import disk, live_copy, pgbackrest, postgres, recovery
from pgherd.drivers.pgbackrest import Info
from pgherd.drivers.postgres import Cluster
from pgherd.drivers.recovery import Recovered
from pgherd.errors import HostFault, PgherdError
from pgherd.spec import Backup, Origin, Repository
from pgherd.unprivileged import Answer, run

_DAY = 86_400.0  # seconds; a copy or a restore that takes longer is given up
_ROOM = 512 << 20  # bytes beside the data itself: segments while it recovers
_MARK_PATIENCE = 90.0  # seconds for the source's newest segment to arrive in its archive
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Impossible(HostFault):
    """The wished data cannot be had, however often it is tried; the message is for the tenant."""


@dataclass(frozen=True)
class Made:
    """What was made: the timelines before and after, and the last transaction's time where it is not all there is."""

    left: int = 0
    timeline: int = 0
    until: str = ""


@dataclass(frozen=True)
class Source:
    """A cluster of this host that the data comes from, and whether it runs."""

    cluster: Cluster
    lives: bool


@dataclass
class Maker:
    """Makes the data of one origin for the cluster of one node.

    `source`: the node that is copied, or whose newest segment the archive needs; `repository`: what is restored;
    `reserve`: bytes of disk that stay free.
    """

    repositories: Repositories
    origin: Origin
    cluster: Cluster
    source: Source | None
    repository: Repository | None
    cores: int
    making: Making
    reserve: int = 0

    @property
    def data(self) -> Path:
        """The directory that the node's user owns."""
        return self.cluster.directory / "data"

    @property
    def aside(self) -> Path:
        """What is not complete yet. What comes back is never where something new was being made."""
        return self.data / ("returning" if self.origin.undo else "making")

    def make(self) -> Made:
        """Let `made-<id>` be there. Raises Impossible, or HostFault when trying again may help."""
        if not _ID.fullmatch(self.origin.id):
            raise HostFault("An origin's id is not acceptable.")
        # An agent that died after the last step has left what it made, but no word of it.
        taken_back = '[ ! -d "$1" ] || { rm -rf "$2" && mv -T "$1" "$2"; }'
        self._shell(taken_back, self.data / f"made-{self.origin.id}", self.aside)
        made = self._undone() if self.origin.undo else self._copied() or self._restored()
        self._shell('mv -T "$1" "$2" && sync "$3"', self.aside, self.data / f"made-{self.origin.id}", self.data)
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
        repository = self._configured()
        complete = self.source is not None and self.source.lives and self._mark(self.source.cluster)
        info = self._info()
        timeline = self.origin.timeline or _newest_timeline(info)
        history = self._history(timeline)
        target = datetime.fromisoformat(self.origin.target) if self.origin.target else None
        found = recovery.usable(info.backups, timeline, history, target)
        if not found:
            raise Impossible(self._window(info.backups, "there is no backup from which that can be restored"))
        last: PgherdError | None = None
        for backup in found:
            self._go_on()
            try:
                return self._restored_from(backup, info.backups, timeline, complete=complete)
            except Impossible:
                raise
            except PgherdError as error:
                last = error  # the next older backup and more of the archive give the same
        raise HostFault(f"No backup can be restored: {last.message if last else ''}", detail=repository.service_id)

    def _restored_from(self, backup: Backup, known: Sequence[Backup], timeline: int, *, complete: bool) -> Made:
        recovered = self._attempt(backup, self.origin.target, timeline)
        if recovered.short and complete:
            # The archive holds all that was written until after the target: no transaction follows it.
            recovered = self._attempt(backup, "", timeline)
        if recovered.short:
            raise Impossible(
                self._window(known, "that lies after the last transaction in the archive", recovered.until)
            )
        left = int(backup.wal_start[:8], 16)
        return Made(
            timeline or left, recovered.timeline, "" if complete and not self.origin.target else recovered.until
        )

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
            raise HostFault(f"Backup {backup.name} cannot be restored.", detail=_words(answer))
        failpoints.passing("origin restored")
        self.making.step = "replays the archive"
        fetch = pgbackrest.fetch(program, config, self.aside)
        return self._recover(self.aside, fetch, target, str(timeline), signal=True)

    def _undone(self) -> Made:
        """From what the last exchange put aside. It goes on on a timeline of its own, so that the archive, which has
        got the one that is left now, holds no two histories of one name."""
        self.making.step = "brings the data back"
        repository = self._configured()
        script = (
            '[ -d "$2" ] || { set -- "$1" "$2" "$3" "$(ls -d "$1"/before-* 2>/dev/null | head -n 1)";'
            ' [ -d "$4" ] || exit 9; mv -T "$4" "$2"; };'
            ' cp -n "$3"/pg_wal/*.history "$2/pg_wal/" 2>/dev/null; exit 0'
        )
        answer = run(
            self.cluster.account,
            ["/bin/sh", "-c", script, "sh", *map(str, (self.data, self.aside, self.cluster.pgdata))],
        )
        if answer.code == 9:
            raise Impossible("There is no earlier data to bring back.")
        fetch = pgbackrest.fetch(self.repositories.installed(), self._config, self.aside)
        recovered = self._recover(self.aside, fetch, "", "current", signal=True)
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
            words = recovery.complaint(answer.err)
            unread = words.startswith("could not restore file")
            raise HostFault(
                "The archive cannot be read." if unread else "The data does not recover.", detail=words[:300]
            )
        return found

    def _mark(self, source: Cluster) -> bool:
        """Write a transaction and wait until the archive has it; False when the source cannot."""
        self.making.step = "waits for the archive"
        try:
            wal = postgres.psql(
                source, "SELECT pg_current_xact_id();\nSELECT pg_walfile_name(pg_switch_wal());\n"
            ).split()[-1]
            if not re.fullmatch("[0-9A-F]{24}", wal):
                return False
            arrived = (
                f"SELECT coalesce(left(last_archived_wal, 24) COLLATE \"C\" >= '{wal}', false) FROM pg_stat_archiver;"
            )
            deadline = time.monotonic() + _MARK_PATIENCE
            while time.monotonic() < deadline and not self.making.cancelled.wait(0.05):
                if postgres.psql(source, arrived).strip() == "t":
                    return True
            return False
        except HostFault:
            return False

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
            self.aside, self.cluster.run, self.cluster.port, self.data / "spool", self._config,
            self.repositories.directory(self.repository.service_id) / "repo",
        )  # fmt: skip
        self.repositories.install(self.repository, place, self.cluster.account, processes=self.cores)
        return self.repository

    def _info(self) -> Info:
        answer = self._run(pgbackrest.info(self.repositories.installed(), self._config), timeout=120)
        if answer.code != 0:
            raise HostFault("The repository cannot be read.", detail=_words(answer))
        return pgbackrest.parse_info(answer.out)

    def _history(self, timeline: int) -> dict[int, int]:
        """Where earlier timelines were left for this one. `archive-get` would want a cluster that is there already."""
        if timeline <= 1:
            return {}
        program, place = self.repositories.installed(), f"archive/{pgbackrest.STANZA}"
        listed = self._run([*pgbackrest.command(program, self._config, "repo-ls"), place], timeout=120)
        clusters = re.findall(r"^\d+-(\d+)$", listed.out.decode(errors="replace"), re.MULTILINE)
        names = re.findall(r"^\d+-\d+$", listed.out.decode(errors="replace"), re.MULTILINE)
        if not names:
            return {}
        newest = max(zip(map(int, clusters), names, strict=True))[1]
        file = f"{place}/{newest}/{timeline:08X}.history"
        found = self._run([*pgbackrest.command(program, self._config, "repo-get"), file], timeout=120)
        return recovery.parse_history(found.out.decode(errors="replace")) if found.code == 0 else {}

    def _window(self, backups: Sequence[Backup], why: str, until: str = "") -> str:
        """A refusal with the possible times."""
        asked = f"{self.origin.target}: " if self.origin.target else ""
        if not backups:
            return f"recovery-backup-time: {asked}{why}; the service has no backup yet."
        first = min(backup.ended_at for backup in backups)
        last = f" to {until}" if until else ""
        return f"recovery-backup-time: {asked}{why}; possible is {first}{last or ' and later'}."

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


def exchange(cluster: Cluster, origin_id: str) -> None:
    """Put what was made into force, once; the server is stopped. What was there before is kept beside it."""
    script = (
        'cd "$1" || exit 1; made=made-$2; before=before-$2;'
        ' if [ -d "$made" ]; then'
        ' if [ -e pgdata ] && [ ! -e "$before" ]; then mv -T pgdata "$before" || exit 1; fi;'
        ' rm -rf pgdata; mv -T "$made" pgdata || exit 1; sync . ; fi; [ -f pgdata/PG_VERSION ]'
    )
    argv = ["/bin/sh", "-c", script, "sh", str(cluster.directory / "data"), origin_id]
    answer = run(cluster.account, argv, timeout=600)
    if answer.code != 0:
        raise HostFault("A node's new data cannot be put in place.", detail=answer.err[-300:])


def ensure_ended(cluster: Cluster) -> None:
    """The stopped cluster ended in order, so that what it wrote last is ready to be archived. Raises HostFault."""
    shown = run(cluster.account, [f"{cluster.program.bin}/pg_controldata", "-D", str(cluster.pgdata)])
    if re.search(rb"cluster state: +shut down\n", shown.out):
        return
    argv = recovery.command(cluster.program.bin, cluster.config, cluster.pgdata, "", "", "latest")
    answer = run(cluster.account, argv, stdin=b"SELECT 1;\n\n", timeout=_DAY)
    if answer.code != 0:
        raise HostFault("The data does not recover.", detail=recovery.complaint(answer.err)[:300])


def is_there(cluster: Cluster, name: str = "pgdata") -> bool:
    """Whether the node has data, be it damaged; looked at by its own user."""
    path = cluster.directory / "data" / name
    looked = '[ -f "$1/PG_VERSION" ] || [ -f "$1/global/pg_control" ]'
    return run(cluster.account, ["/bin/sh", "-c", looked, "sh", str(path)], timeout=10).code == 0


def is_made(cluster: Cluster, origin_id: str) -> bool:
    """Whether the data of this origin waits to be put in place."""
    return is_there(cluster, f"made-{origin_id}")


def bytes_aside(cluster: Cluster) -> int:
    """The size of what is kept from before."""
    script = 'du -sbc "$1"/before-* 2>/dev/null | tail -n 1 | cut -f 1'
    answer = run(cluster.account, ["/bin/sh", "-c", script, "sh", str(cluster.directory / "data")], timeout=120)
    text = answer.out.strip()
    return int(text) if text.isdigit() else 0


def forget_aside(cluster: Cluster, *, keep: str = "") -> None:
    """Delete what was there before, but for the one that was left for the origin `keep`."""
    script = 'for d in "$1"/before-*; do [ "$d" = "$1/before-$2" ] || rm -rf "$d"; done'
    answer = run(cluster.account, ["/bin/sh", "-c", script, "sh", str(cluster.directory / "data"), keep], timeout=600)
    if answer.code != 0:
        raise HostFault("A node's earlier data cannot be deleted.", detail=answer.err[-300:])


def _newest_timeline(info: Info) -> int:
    known = [int(name[:8], 16) for name in (info.wal_last, *(b.wal_stop for b in info.backups)) if len(name) == 24]
    return max(known, default=0)


def _words(answer: Answer) -> str:
    lines = (answer.out.decode(errors="replace") + answer.err).splitlines()
    return pgbackrest.complaint(lines[-50:])[:300]
