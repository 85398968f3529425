"""Which points in time of a service can be had, and what a refusal says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgherd.errors import Conflict, Incorrect
from pgherd.model.moment import check_moment, window
from pgherd.spec import Backup, RepositoryStatus

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
