"""Points in time that requests name, and whether a service's data of then can be had: pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pgherd.errors import Conflict, Incorrect
from pgherd.model.backup import possible_from, sound_since
from pgherd.spec import RepositoryStatus, Window

#: Clocks of clients differ; a time so little ahead is taken for now. Seconds.
AHEAD = 5.0


def read_moment(text: str, field: str) -> datetime:
    """An ISO 8601 time, in UTC; without an offset it is UTC. Raises Incorrect.

    Takes what clients send: `T` or a blank between, `Z` or an offset, fractions of a second down to microseconds.
    """
    try:
        moment = datetime.fromisoformat(text.strip().upper())
        if len(text.strip()) <= len("2026-01-31"):
            raise ValueError("a day only")
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Incorrect(
            f"{field}: must be an ISO 8601 time such as 2026-01-31T12:00:00Z, 2026-01-31 12:00:00.250 (UTC)"
            " or 2026-01-31T13:00:00+01:00."
        ) from None


def written(moment: datetime) -> str:
    """As hosts and messages have it: RFC 3339 in UTC, with the fraction that it has."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


class Hole(NamedTuple):
    """From when until when nothing can be restored, and why; no end: no backup came since."""

    begin: datetime
    end: datetime | None
    why: str


def first_moment(repository: RepositoryStatus) -> datetime | None:
    """The earliest time that can be restored: a second after the oldest backup ended. None: there is none."""
    return min(map(possible_from, repository.backups), default=None)


def holes(repository: RepositoryStatus, broken: Sequence[Window]) -> list[Hole]:
    """What is known to be missing, the oldest first: segments that were given up last, and `broken`, which a proof
    found. What else is missing, and how long before, only a recovery finds out."""
    first = first_moment(repository)
    if first is None:
        return []
    found = []
    if repository.gap_at and (begin := datetime.fromisoformat(repository.gap_at)) >= first:
        after = map(possible_from, sound_since(repository.backups, repository.gap_at))
        found.append(Hole(begin, min(after, default=None), "where segments were given up"))
    for span in broken:
        start, stop = datetime.fromisoformat(span.start) + timedelta(seconds=1), datetime.fromisoformat(span.end)
        later = (b for b in sound_since(repository.backups, "") if datetime.fromisoformat(b.ended_at) >= stop)
        found.append(Hole(start, min(map(possible_from, later), default=None), "which the last proof found damaged"))
    return sorted((hole for hole in found if hole.end is None or hole.end > first), key=lambda hole: hole.begin)


def check_moment(
    moment: datetime | None,
    repository: RepositoryStatus | None,
    field: str,
    *,
    lives: bool,
    now: datetime,
    broken: Sequence[Window] = (),
) -> None:
    """Raise Incorrect or Conflict, with the possible window, when the data of `moment` (None: as late as possible)
    cannot be had.

    `lives`: the service runs, so that what it has written until now will be archived. `broken`: what its last proof
    found.
    """
    possible = window(repository, now, lives=lives, broken=broken)
    if moment is not None and moment > now + timedelta(seconds=AHEAD):
        raise Incorrect(f"{field}: {written(moment)} lies in the future; {possible}")
    first = first_moment(repository) if repository else None
    if repository is None or first is None:
        if moment is None and lives:
            return
        raise Conflict(f"{field}: {possible}")
    if moment is not None and moment < first:
        raise Incorrect(f"{field}: {written(moment)} lies before the first backup; {possible}")
    for hole in holes(repository, broken):
        if moment is None and not lives and hole.end is None:
            raise Conflict(
                f"{field}: what was written after {written(hole.begin)} is not in the archive, {hole.why};"
                f" name a time with recovery-backup-time: {possible}"
            )
        if moment is not None and moment >= hole.begin and (hole.end is None or moment < hole.end):
            raise Incorrect(f"{field}: {written(moment)} is not in the archive, {hole.why}; {possible}")


def window(repository: RepositoryStatus | None, now: datetime, *, lives: bool, broken: Sequence[Window] = ()) -> str:
    """The possible times, in words."""
    begin = first_moment(repository) if repository else None
    if repository is None or begin is None:
        return "the service has no backup yet, so only its present state can be had, and only while it runs."
    spans = []
    for hole in holes(repository, broken):
        if hole.begin > begin:
            spans.append(f"{written(begin)} to {written(hole.begin)} at the latest")
        if hole.end is None:
            break
        begin = max(begin, hole.end)
    else:
        last = written(now.replace(microsecond=0)) if lives else repository.archived_at or "the end of its archive"
        spans.append(f"{written(begin)} to {last}")
    return f"possible is {', and '.join(spans) or 'no time until the next backup'}."
