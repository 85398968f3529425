"""What a repository's archive holds: its backups, how its timelines branch, and how far each of them reaches."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pgherd.agent.makings import Making
from pgherd.drivers import pgbackrest, postgres, recovery
from pgherd.drivers.pgbackrest import Info, Program
from pgherd.drivers.postgres import Cluster
from pgherd.errors import HostFault
from pgherd.spec import Backup
from pgherd.unprivileged import Answer

_SECONDS = 120.0
_MARK_PATIENCE = 90.0  # seconds for the newest segment to arrive
_AHEAD = 30.0  # seconds that a target may lie ahead of this host's clock


@dataclass(frozen=True)
class Reach:
    """What recovery along `timeline` must have read: no less than its newest segment, `segment` (empty: unknown).

    `history`: where earlier timelines were left for this one.
    """

    timeline: int
    history: dict[int, int]
    segment: str = ""


@dataclass
class Archive:
    """Looked at with the configuration in the directory `config`; `run` runs a command for at most so many seconds."""

    program: Program
    config: Path
    run: Callable[[Sequence[str], float], Answer]

    def info(self) -> Info:
        """What is in it. Raises HostFault."""
        answer = self.run(pgbackrest.info(self.program, self.config), _SECONDS)
        if answer.code != 0:
            raise HostFault("The repository cannot be read.", detail=words(answer))
        return pgbackrest.parse_info(answer.out)

    def reach(self, timeline: int, marked: str) -> Reach:
        """How far recovery along a timeline must come now; `marked`: a segment that is known to have arrived."""
        history = self._history(timeline)
        found = ""
        for line in (timeline, *sorted(history, reverse=True)):
            if found := self._newest(line):
                break
        if found and int(found[:8], 16) in history:
            left = history[int(found[:8], 16)] // recovery.SEGMENT_BYTES
            found = min(found, recovery.segment(int(found[:8], 16), left))
        if int(marked[:8] or "0", 16) == timeline:
            found = max(found, marked)
        return Reach(timeline, history, found)

    def holds(self, segment: str) -> bool:
        """Whether a segment is there."""
        return any(name.startswith(f"{segment}-") for name in self._list(f"{self._place}/{segment[:16]}"))

    def _newest(self, timeline: int) -> str:
        """The newest segment of one timeline; those that were never finished do not count."""
        for directory in sorted(self._list(self._place), reverse=True):
            if re.fullmatch(f"{timeline:08X}[0-9A-F]{{8}}", directory):
                names = self._list(f"{self._place}/{directory}")
                if found := [name[:24] for name in names if re.match("[0-9A-F]{24}-", name)]:
                    return max(found)
        return ""

    def _history(self, timeline: int) -> dict[int, int]:
        """Where earlier timelines were left for this one. `archive-get` would want a cluster that is there already."""
        if timeline <= 1:
            return {}
        get = [*pgbackrest.command(self.program, self.config, "repo-get"), f"{self._place}/{timeline:08X}.history"]
        found = self.run(get, _SECONDS)
        return recovery.parse_history(found.out.decode(errors="replace")) if found.code == 0 else {}

    @functools.cached_property
    def _place(self) -> str:
        """The archive of the newest cluster, as the program names places in a repository."""
        place = f"archive/{pgbackrest.STANZA}"
        names = [name for name in self._list(place) if re.fullmatch(r"\d+-\d+", name)]
        return f"{place}/{max(names, key=lambda name: int(name.partition('-')[2]))}" if names else f"{place}/none"

    def _list(self, place: str) -> list[str]:
        listed = self.run([*pgbackrest.command(self.program, self.config, "repo-ls"), place], _SECONDS)
        if listed.code != 0:
            raise HostFault("The repository cannot be read.", detail=words(listed))
        return listed.out.decode(errors="replace").split()


def mark(source: Cluster, target: str, making: Making) -> str:
    """Write a transaction after the target and wait until the archive has it; its segment, or empty when the
    source cannot."""
    making.step = "waits for the archive"
    if target:
        ahead = datetime.fromisoformat(target).timestamp() - time.time()
        making.cancelled.wait(min(max(0.0, ahead), _AHEAD))
    try:
        writing = "SELECT pg_current_xact_id();\nSELECT pg_walfile_name(pg_switch_wal());\n"
        wal = postgres.psql(source, writing).split()[-1]
        if not re.fullmatch("[0-9A-F]{24}", wal):
            return ""
        arrived = f"SELECT coalesce(left(last_archived_wal, 24) COLLATE \"C\" >= '{wal}', false) FROM pg_stat_archiver;"
        deadline = time.monotonic() + _MARK_PATIENCE
        while time.monotonic() < deadline and not making.cancelled.wait(0.05):
            if postgres.psql(source, arrived).strip() == "t":
                return str(wal)
        return ""
    except HostFault:
        return ""


def window(backups: Sequence[Backup], until: str = "", missing: str = "") -> str:
    """The possible times in words: up to `until` where that is known, and again after the segment `missing`."""
    first = _possible(backups)
    later = _possible([b for b in backups if b.wal_start[8:] > missing[8:]]) if missing else None
    spans = []
    if first is not None and until and datetime.fromisoformat(until) >= first:
        spans.append(f"{written(first)} to {until}")
    elif first is not None and not missing:
        spans.append(f"{written(first)} and later")
    if later is not None:
        spans.append(f"{written(later)} and later")
    return f"possible is {', and '.join(spans)}" if spans else "nothing is possible until the next backup"


def written(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.isoformat().replace("+00:00", "Z")


def _possible(backups: Sequence[Backup]) -> datetime | None:
    """The first time that one of them makes possible: a second after it ended."""
    return min((datetime.fromisoformat(b.ended_at) + timedelta(seconds=1) for b in backups), default=None)


def newest_timeline(info: Info) -> int:
    """The number of the newest timeline; 0: there is nothing."""
    known = [int(name[:8], 16) for name in (info.wal_last, *(b.wal_stop for b in info.backups)) if len(name) == 24]
    return max(known, default=0)


def words(answer: Answer) -> str:
    """Why a command of pgBackRest failed."""
    lines = (answer.out.decode(errors="replace") + answer.err).splitlines()
    return pgbackrest.complaint(lines[-50:])[:300]
