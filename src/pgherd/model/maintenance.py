"""What waits for maintenance, and when it is done: pure, all times in UTC.

A window begins at the service's weekly slot and is `LENGTH` long. Services of the same slot start spread over the
first hour of it, each always at the same minute. What has waited until its deadline is done at the slot's time of any
day, also where the day is `never`. A renewed certificate never waits: it is taken by a reload, which interrupts nobody.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, Literal

from pgherd.model.service import Maintenance

Kind = Literal["postgresql", "pgbouncer", "parameters"]

LENGTH = timedelta(hours=2)
_SPREAD = 3600  # seconds
#: From when an update is known until it is done at the earliest, unless the owner asks for it.
NOTICE = timedelta(hours=24)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class Update:
    """One thing that waits."""

    kind: Kind
    description: str


def pending(status: Mapping[str, Any], facts: Mapping[str, Any], major: str) -> list[Update]:
    """What waits for a node, from its NodeStatus and its host's HostFacts."""
    found: list[Update] = []
    installed, running = (facts.get("versions") or {}).get(major, ""), status.get("version", "")
    if is_newer(installed, running):
        found.append(Update("postgresql", f"PostgreSQL {installed} instead of {running}, by a restart"))
    installed, running = facts.get("pooler") or "", status.get("pooler", "")
    if is_newer(installed, running):
        found.append(Update("pgbouncer", f"PgBouncer {installed} instead of {running}, by a restart of the pools"))
    if waiting := status.get("pending_restart"):
        shown = re.sub(r"[^\x20-\x7e]+", " ", ", ".join(waiting))[:300]
        found.append(Update("parameters", f"Parameters that wait for a restart: {shown}"))
    return found


def is_newer(installed: str, running: str) -> bool:
    """Whether a version is above another; an unknown one is not."""
    numbers = [[int(part) for part in re.findall(r"\d+", version)] for version in (installed, running)]
    return all(numbers) and numbers[0] > numbers[1]


def start_after(since: datetime) -> datetime:
    """The earliest that it is done without being asked for."""
    return since + NOTICE


@dataclass(frozen=True)
class Calendar:
    """The windows of one service. `days`: how long an update may wait; `done`: the window of the last attempt."""

    slot: Maintenance
    service: str
    days: int
    done: datetime | None = None

    def deadline(self, since: datetime) -> datetime:
        """From when on an update, known since then, is done on any day."""
        return since + timedelta(days=self.days)

    def start_at(self, since: datetime, now: datetime) -> datetime:
        """When it is done unless something is in the way: the service's minute of the first window that is not over."""
        day = (max(start_after(since), now) - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        while True:
            at = day + self._time
            weekly = self.slot.dow == _DAYS[day.weekday()]
            over = at + LENGTH - self._offset <= now or (self.done is not None and at <= self.done)
            if not over and at >= start_after(since) and (weekly or at >= self.deadline(since)):
                return at
            day += timedelta(days=1)

    def open_window(self, since: datetime, now: datetime) -> datetime | None:
        """The start of the window in which the service's turn has come and was not used; None: there is none now."""
        at = self.start_at(since, now)
        return at if at <= now else None

    @property
    def _time(self) -> timedelta:
        begin = time.fromisoformat(self.slot.time)
        return timedelta(hours=begin.hour, minutes=begin.minute, seconds=begin.second) + self._offset

    @property
    def _offset(self) -> timedelta:
        """A part of the spread that is the service's own."""
        return timedelta(seconds=zlib.crc32(self.service.encode()) % _SPREAD)
