"""Where a recovery has ended, and what is possible when that is too early: pure."""

from __future__ import annotations

from pgherd.agent.archive import window
from pgherd.drivers.recovery import Recovered, missing, parse, parse_history, segment
from pgherd.spec import Backup

SIZE = 16 << 20
HISTORY = {1: 5 * SIZE + 100}


def ended(end: int, left: int = 0) -> Recovered:
    return Recovered(0, "", False, end, left)


def test_where_it_ended() -> None:
    said = (
        "LOG:  redo starts at 0/2000028\nLOG:  redo done at 1/30001A8 system usage: CPU: user: 0.00 s\n"
        "LOG:  last completed transaction was at log time 2026-11-24 12:00:00.5+00\nLOG:  selected new timeline ID: 3\n"
    )
    found = parse(said)
    assert (found.timeline, found.until, found.end) == (3, "2026-11-24T12:00:00.500000Z", (1 << 32) + 0x30001A9)
    assert parse("LOG:  redo is not required").end == 0
    assert parse_history("1\t0/5000064\tno recovery target specified\n") == {1: 5 * SIZE + 100}
    assert segment(2, 257) == "000000020000000100000001"


def test_what_it_lacks() -> None:
    newest = segment(2, 9)
    assert missing(ended(9 * SIZE + 1), 2, HISTORY, newest) == ""
    assert missing(ended(10 * SIZE), 2, HISTORY, newest) == "", "the end of the last record is the segment's"
    assert missing(ended(12 * SIZE), 2, HISTORY, newest) == "", "more has arrived meanwhile"
    assert missing(ended(9 * SIZE), 2, HISTORY, newest) == newest
    assert missing(ended(4 * SIZE), 2, HISTORY, newest) == segment(1, 4)
    assert missing(ended(5 * SIZE), 2, HISTORY, newest) == segment(2, 5)
    assert missing(ended(0), 2, HISTORY, newest) == segment(1, 1)
    assert missing(ended(4 * SIZE), 2, HISTORY, "") == ""


def test_what_another_history_wrote_is_not_gone_on_with() -> None:
    assert missing(ended(HISTORY[1], 1), 2, HISTORY, "") == ""
    assert missing(ended(HISTORY[1] + 1, 1), 2, HISTORY, "") == segment(2, 5)
    assert missing(ended(HISTORY[1] + 1, 2), 2, HISTORY, "") == ""


def test_the_possible_times() -> None:
    backups = [
        Backup("a", "", "2026-11-24T10:00:00Z", 1, 1, wal_start=segment(1, 2), wal_stop=segment(1, 2)),
        Backup("b", "", "2026-11-24T11:00:00Z", 1, 1, wal_start=segment(1, 8), wal_stop=segment(1, 8)),
    ]
    assert window(backups) == "possible is 2026-11-24T10:00:01Z and later"
    until = "2026-11-24T10:30:00.5Z"
    assert window(backups, until) == f"possible is 2026-11-24T10:00:01Z to {until}"
    after = "and 2026-11-24T11:00:01Z and later"
    assert window(backups, until, segment(1, 5)) == f"possible is 2026-11-24T10:00:01Z to {until}, {after}"
    assert window(backups, "", segment(1, 5)) == "possible is 2026-11-24T11:00:01Z and later"
    assert window(backups[:1], "", segment(1, 5)) == "nothing is possible until the next backup"
