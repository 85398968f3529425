"""When a service is backed up, and by which kind of backup: pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from pgherd.model.service import Schedule
from pgherd.spec import Backup

#: Seconds of a service's life until its first backup: a service that is deleted at once is not worth one.
FIRST_AFTER = 30
#: Seconds until a backup that failed is tried again.
AGAIN_AFTER = 600
#: Most backups from a full one to the next, itself included.
LONGEST_CHAIN = 7


def latest_slot(schedule: Schedule, now: datetime) -> datetime:
    """The last time until now at which the daily backup was to start; UTC."""
    slot = now.replace(hour=schedule.hour, minute=schedule.minute, second=0, microsecond=0)
    return slot if slot <= now else slot - timedelta(days=1)


def is_due(schedule: Schedule, created: datetime, backups: list[Backup], gap_at: str, now: datetime) -> bool:
    """Whether a backup is to start. However many were missed, one makes up for them.

    `gap_at`: when segments were given up; what came after can only be restored from a backup that began later.
    """
    if not backups:
        return now - created >= timedelta(seconds=FIRST_AFTER)
    last = max(datetime.fromisoformat(backup.started_at) for backup in backups)
    if gap_at and last <= datetime.fromisoformat(gap_at):
        return True
    return last < latest_slot(schedule, now)


def wants_full(backups: list[Backup], keep: int) -> bool:
    """Whether the next backup copies everything: the first, one after damage, and each `keep`th, at most the 7th."""
    if not backups or backups[-1].damaged:
        return True
    names = [backup.name for backup in backups]
    chain = next((i for i, backup in enumerate(reversed(backups)) if not backup.parent), len(names))
    return chain + 1 >= min(keep, LONGEST_CHAIN)


def sound_since(backups: list[Backup], gap_at: str) -> list[Backup]:
    """Those without damage that were begun after segments were given up; `gap_at` empty: all without damage."""
    begin = datetime.fromisoformat(gap_at) if gap_at else None
    return [b for b in backups if not b.damaged and (begin is None or datetime.fromisoformat(b.started_at) > begin)]


def possible_from(backup: Backup) -> datetime:
    """The first time to which one can go back from it: its end is known in whole seconds only."""
    return datetime.fromisoformat(backup.ended_at) + timedelta(seconds=1)


def window(backups: list[Backup], archived_at: str, gap_at: str) -> tuple[str, str]:
    """From when to when one can go back to any moment; two empty texts when there is no sound backup.

    After a gap in the archive the window begins with the first backup that was started later. It ends when the last
    segment arrived, or with the newest backup.
    """
    sound, beyond = sound_since(backups, ""), sound_since(backups, gap_at)
    if not sound:
        return "", ""
    first, last = (_written(possible_from(backup)) for backup in ((beyond or sound)[0], sound[-1]))
    return first, max(archived_at if beyond else "", last)


def _written(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
