"""Which points in time of a service can be had, and what a refusal says."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from pgherd.errors import Conflict, Incorrect
from pgherd.model.moment import check_moment, read_moment, window
from pgherd.spec import Backup, RepositoryStatus, Window

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def backup(minutes: float, damaged: bool = False) -> Backup:
    """One that took a minute and ended so long ago."""
    return Backup(f"b{minutes}", text(ago(minutes + 1)), text(ago(minutes)), 1, 1, damaged=damaged)


def check(moment: datetime | None, repository: RepositoryStatus | None, lives: bool = True) -> None:
    check_moment(moment, repository, "to", lives=lives, now=NOW)


def known(*backups: Backup, gap: float = 0) -> RepositoryStatus:
    return RepositoryStatus(True, list(backups), archived_at=text(ago(1)), gap_at=text(ago(gap)) if gap else "")


@pytest.mark.parametrize("moment", [None, ago(99), ago(0.5), NOW + timedelta(seconds=4)])
def test_what_lies_in_the_window_can_be_had(moment: datetime | None) -> None:
    check(moment, known(backup(100), backup(50)))
    check(moment, known(backup(100), backup(50)), lives=False)


def test_before_the_first_backup_only_the_present_can_be_had() -> None:
    for repository in (None, known()):
        check(None, repository)
        for moment, lives in ((None, False), (ago(1), True)):
            with pytest.raises(Conflict, match="has no backup yet"):
                check(moment, repository, lives)
    with pytest.raises(Incorrect, match=r"before the first backup; possible is 2026-11-24T10:20:01Z to 2026-11-24T12"):
        check(ago(100), known(backup(100)))
    with pytest.raises(Incorrect, match="in the future"):
        check(NOW + timedelta(seconds=6), known(backup(100)))


def test_what_was_given_up_is_refused_with_what_is_on_both_sides() -> None:
    mended = known(backup(100), backup(20, damaged=True), backup(10), gap=30)
    for moment in (None, ago(31), ago(9)):
        check(moment, mended)
        check(moment, mended, lives=False)
    for moment in (ago(30), ago(20), ago(10)):
        with pytest.raises(Incorrect, match=r"to: .* segments were given up; possible is"):
            check(moment, mended)
    assert window(mended, NOW, lives=True) == (
        "possible is 2026-11-24T10:20:01Z to 2026-11-24T11:30:00Z at the latest,"
        " and 2026-11-24T11:50:01Z to 2026-11-24T12:00:00Z."
    )


def test_after_a_gap_without_a_backup_the_present_can_be_had_while_it_runs() -> None:
    open_end = known(backup(100), gap=30)
    check(None, open_end)
    check(ago(31), open_end, lives=False)
    with pytest.raises(Conflict, match=r"after 2026-11-24T11:30:00Z is not in the archive.* at the latest.$"):
        check(None, open_end, lives=False)
    with pytest.raises(Incorrect, match="given up"):
        check(ago(1), open_end)


def test_a_gap_before_the_first_backup_is_of_the_past() -> None:
    later = known(backup(10), gap=30)
    check(None, later, lives=False)
    assert window(later, NOW, lives=False) == "possible is 2026-11-24T11:50:01Z to 2026-11-24T11:59:00Z."


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00"),
        ("2026-01-31t12:00:00z", "2026-01-31T12:00:00"),
        (" 2026-01-31 12:00:00.250 ", "2026-01-31T12:00:00.250000"),
        ("2026-01-31T12:00:00.123456", "2026-01-31T12:00:00.123456"),
        ("2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00"),
        ("2026-01-31 06:30:00-05:30", "2026-01-31T12:00:00"),
        ("2026-01-31T00:15:00+0545", "2026-01-30T18:30:00"),
        ("2026-12-31T23:30:00-01", "2027-01-01T00:30:00"),
        # The hour that Central Europe has twice: the offset says which of the two; without one it is UTC.
        ("2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00"),
        ("2026-10-25T02:30:00+01:00", "2026-10-25T01:30:00"),
        ("2026-10-25T02:30:00", "2026-10-25T02:30:00"),
        # And the one that it has not.
        ("2026-03-29T02:30:00+01:00", "2026-03-29T01:30:00"),
    ],
)
def test_a_time_is_read_in_utc(given: str, meant: str) -> None:
    moment = read_moment(given, "to")
    assert moment.tzinfo is UTC and moment.replace(tzinfo=None).isoformat() == meant


@pytest.mark.parametrize(
    "given",
    ["", "yesterday", "2026-01-31", "2026-02-30T12:00:00Z", "2026-01-31T25:00:00", "2026-01-31T12:00:00+25:00",
     "0001-01-01T00:00:00+01:00", "1769860800", "2026-01-31T12:00:00 Europe/Zurich"],
)  # fmt: skip
def test_what_is_no_time_is_refused(given: str) -> None:
    with pytest.raises(Incorrect, match="to: must be an ISO 8601 time"):
        read_moment(given, "to")


def test_what_a_proof_found_broken_is_refused() -> None:
    repository = known(backup(100), backup(40), backup(10), gap=15)
    middle, end = Window(text(ago(60)), text(ago(40))), Window(text(ago(5)), text(ago(1)))
    for moment, refused in ((ago(70), False), (ago(60), False), (ago(50), True), (ago(39), False), (ago(12), True)):
        with contextlib.nullcontext() if not refused else pytest.raises(Incorrect, match="not in the archive"):
            check_moment(moment, repository, "to", lives=True, now=NOW, broken=[middle])
    assert window(repository, NOW, lives=True, broken=[middle]) == (
        "possible is 2026-11-24T10:20:01Z to 2026-11-24T11:00:01Z at the latest,"
        " and 2026-11-24T11:20:01Z to 2026-11-24T11:45:00Z at the latest,"
        " and 2026-11-24T11:50:01Z to 2026-11-24T12:00:00Z."
    )
    check_moment(None, repository, "to", lives=True, now=NOW, broken=[middle, end])
    with pytest.raises(Conflict, match="which the last proof found damaged"):
        check_moment(None, repository, "to", lives=False, now=NOW, broken=[middle, end])
    whole = Window(text(ago(100)), text(ago(1)))
    assert window(repository, NOW, lives=True, broken=[whole]) == "possible is no time until the next backup."
