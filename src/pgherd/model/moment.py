"""Points in time that requests name, and whether a service's data of then can be had: pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pgherd.errors import Conflict, Incorrect
from pgherd.model.backup import sound_since
from pgherd.spec import RepositoryStatus

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


def first_moment(repository: RepositoryStatus) -> datetime | None:
    """The earliest time that can be restored: a second after the oldest backup ended. None: there is none."""
    ends = [datetime.fromisoformat(backup.ended_at) for backup in repository.backups]
    return min(ends) + timedelta(seconds=1) if ends else None


def gap(repository: RepositoryStatus) -> tuple[datetime, datetime | None] | None:
    """From when until when nothing can be restored, because segments were given up; no end: no backup came since.

    What they held is older than that by as long as they had waited, which only a recovery finds out.
    """
    first, begin = first_moment(repository), repository.gap_at and datetime.fromisoformat(repository.gap_at)
    if first is None or not begin or begin < first:
        return None
    ends = [datetime.fromisoformat(b.ended_at) for b in sound_since(repository.backups, repository.gap_at)]
    return begin, min(ends) + timedelta(seconds=1) if ends else None


def check_moment(
    moment: datetime | None, repository: RepositoryStatus | None, field: str, *, lives: bool, now: datetime
) -> None:
    """Raise Incorrect or Conflict, with the possible window, when the data of `moment` (None: as late as possible)
    cannot be had.

    `lives`: the service runs, so that what it has written until now will be archived.
    """
    if moment is not None and moment > now + timedelta(seconds=AHEAD):
        raise Incorrect(f"{field}: {written(moment)} lies in the future; {window(repository, now, lives=lives)}")
    first = first_moment(repository) if repository else None
    if repository is None or first is None:
        if moment is None and lives:
            return
        raise Conflict(f"{field}: {window(repository, now, lives=lives)}")
    if moment is not None and moment < first:
        raise Incorrect(
            f"{field}: {written(moment)} lies before the first backup; {window(repository, now, lives=lives)}"
        )
    begin, end = gap(repository) or (None, None)
    if begin is None or (end is not None and (moment is None or moment >= end)):
        return
    if moment is None and not lives:
        raise Conflict(
            f"{field}: what was written after {written(begin)} is not in the archive, where segments were given up;"
            f" name a time with recovery-backup-time: {window(repository, now, lives=lives)}"
        )
    if moment is not None and moment >= begin:
        raise Incorrect(
            f"{field}: {written(moment)} is not in the archive, where segments were given up;"
            f" {window(repository, now, lives=lives)}"
        )


def window(repository: RepositoryStatus | None, now: datetime, *, lives: bool) -> str:
    """The possible times, in words."""
    first = first_moment(repository) if repository else None
    if repository is None or first is None:
        return "the service has no backup yet, so only its present state can be had, and only while it runs."
    last = written(now.replace(microsecond=0)) if lives else repository.archived_at or "the end of its archive"
    if (hole := gap(repository)) is None:
        return f"possible is {written(first)} to {last}."
    begin, end = hole
    after = f", and {written(end)} to {last}" if end else ""
    return f"possible is {written(first)} to {written(begin)} at the latest{after}."
