"""When maintenance is done, and what waits for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgherd.model.maintenance import LENGTH, NOTICE, Calendar, is_newer, pending
from pgherd.model.service import Maintenance

#: A Wednesday.
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=10)


def calendar(
    dow: str = "saturday", time: str = "02:00:00", service: str = "s", days: int = 60, **more: datetime
) -> Calendar:
    return Calendar(Maintenance(dow, time), service, days, **more)


def slot(at: datetime, one: Calendar) -> datetime:
    """The slot's own time, without the part of the spread that is the service's."""
    return at - one._offset


def test_the_next_slot_of_the_week() -> None:
    one = calendar()
    assert slot(one.start_at(LONG_AGO, NOW), one) == datetime(2026, 11, 28, 2, 0, tzinfo=UTC)
    wednesday = calendar("wednesday", "13:00:00")
    assert slot(wednesday.start_at(LONG_AGO, NOW), wednesday) == datetime(2026, 11, 25, 13, 0, tzinfo=UTC)


def test_a_day_s_notice() -> None:
    one = calendar("wednesday", "13:00:00")
    at = one.start_at(NOW - timedelta(hours=1), NOW)
    assert slot(at, one) == datetime(2026, 12, 2, 13, 0, tzinfo=UTC)
    assert at >= NOW - timedelta(hours=1) + NOTICE


def test_open_from_the_service_s_minute_to_the_window_s_end_and_once() -> None:
    one = calendar("wednesday", "11:30:00")
    begin = datetime(2026, 11, 25, 11, 30, tzinfo=UTC)
    at = begin + one._offset
    assert one.open_window(LONG_AGO, at - timedelta(seconds=1)) is None
    assert one.open_window(LONG_AGO, at) == at
    assert one.open_window(LONG_AGO, begin + LENGTH - timedelta(seconds=1)) == at
    assert one.open_window(LONG_AGO, begin + LENGTH) is None
    again = calendar("wednesday", "11:30:00", done=at)
    assert again.open_window(LONG_AGO, at + timedelta(minutes=1)) is None
    assert again.start_at(LONG_AGO, at) == at + timedelta(days=7)


def test_a_window_that_goes_over_midnight() -> None:
    one = next(
        c for n in range(99) if (c := calendar("wednesday", "23:50:00", f"s{n}"))._offset > timedelta(minutes=20)
    )
    at = one.start_at(LONG_AGO, NOW)
    assert (slot(at, one).weekday(), at.weekday()) == (2, 3)
    assert one.open_window(LONG_AGO, at + timedelta(minutes=1)) == at


def test_never_until_the_deadline() -> None:
    one = calendar("never", "03:00:00", days=30)
    at = one.start_at(LONG_AGO, NOW)
    assert one.deadline(LONG_AGO) <= at < one.deadline(LONG_AGO) + timedelta(days=2)
    assert one.open_window(LONG_AGO, NOW) is None
    assert one.open_window(LONG_AGO, at) == at
    tomorrow = calendar("never", "03:00:00", days=30, done=at)
    assert tomorrow.start_at(LONG_AGO, at) == at + timedelta(days=1)


def test_services_of_one_slot_start_spread() -> None:
    starts = [calendar(service=f"service-{n}").start_at(LONG_AGO, NOW) for n in range(300)]
    assert len(set(starts)) > 250
    assert max(starts) - min(starts) < timedelta(hours=1)


@pytest.mark.parametrize(
    ("installed", "running", "newer"),
    [("15.20", "15.18", True), ("15.18", "15.20", False), ("15.9", "15.18", False), ("1.24.1", "1.24", True),
     ("15.18", "15.18", False), ("", "15.18", False), ("15.18", "", False)],
)  # fmt: skip
def test_newer(installed: str, running: str, newer: bool) -> None:
    assert is_newer(installed, running) is newer


def test_what_waits() -> None:
    status = {"version": "15.18", "pooler": "1.21.0", "pending_restart": ["max_wal_senders"]}
    facts = {"versions": {"15": "15.20", "16": "16.9"}, "pooler": "1.24.1"}
    assert [update.kind for update in pending(status, facts, "15")] == ["postgresql", "pgbouncer", "parameters"]
    assert "15.20 instead of 15.18" in pending(status, facts, "15")[0].description
    current = {"version": "15.20", "pooler": "", "pending_restart": []}
    assert pending(current, facts, "15") == []
    assert pending({}, {}, "15") == []
