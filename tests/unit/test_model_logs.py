"""Pages of several logs: in order of time, none lost, none twice, whatever is read in whichever direction."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.errors import Incorrect
from pgherd.model.logs import Place, merge, read_offset, write_offset
from pgherd.telemetry import LogEntry, LogPosition, LogUnit

Log = dict[tuple[str, str], list[int]]
FILE = "2026-01-31 12:00:00.123456789"


def ask(log: Log, place: Place | None, limit: int, ascending: bool, most: int) -> dict[str, list[LogUnit]]:
    """What hosts answer: `log` holds the times of each unit's messages, of which they tell at most `most`."""
    answers: dict[str, list[LogUnit]] = {}
    for (node, unit), times in log.items():
        given = None if place is None else place.get(node, {}).get(unit)
        at = given.offset if given else (0 if ascending else len(times))
        places = list(range(at, len(times))) if ascending else list(range(at - 1, -1, -1))
        told = places[: min(limit, most)]
        entries = [
            LogEntry(f"{times[n]:06}", f"{node} {unit} {n}", LogPosition(FILE, n), LogPosition(FILE, n + 1))
            for n in told
        ]
        answers.setdefault(node, []).append(LogUnit(unit, LogPosition(FILE, at), entries, len(told) < len(places)))
    return answers


logs = st.dictionaries(
    st.tuples(st.sampled_from(["a-1", "a-2"]), st.sampled_from(["pg", "pool"])),
    st.lists(st.integers(0, 99), max_size=30),
    min_size=1,
    max_size=4,
)


@given(logs, st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_every_message_is_on_one_page_and_each_log_in_its_order(log: Log, limit: int, most: int, up: bool) -> None:
    seen: list[str] = []
    place: Place | None = None
    while True:
        page = merge(ask(log, place, limit, up, most), limit, ascending=up)
        assert len(page.entries) <= limit
        if not page.entries:
            break
        seen += [entry.message for _, _, entry in page.entries]
        place = read_offset(write_offset(page.far))
    for (node, unit), times in log.items():
        own = [f"{node} {unit} {n}" for n in range(len(times))]
        assert [m for m in seen if m.startswith(f"{node} {unit} ")] == (own if up else own[::-1])
    assert len(seen) == sum(map(len, log.values()))


@given(logs, st.integers(1, 9))
def test_from_its_near_end_a_page_is_left_the_other_way(log: Log, limit: int) -> None:
    page = merge(ask(log, None, limit, False, 99), limit, ascending=False)
    later = {key: [*times, 100] for key, times in log.items()}
    newer = merge(ask(later, page.near, 99, True, 99), 99, ascending=True)
    assert [entry.time for _, _, entry in newer.entries] == ["000100"] * len(log)
    back = merge(ask(log, page.far, limit, True, 99), limit, ascending=True)
    assert sorted(e.message for _, _, e in back.entries) == sorted(e.message for _, _, e in page.entries)


@given(st.lists(st.lists(st.integers(0, 99), max_size=9).map(sorted), min_size=2, max_size=2))
def test_ordered_logs_give_ordered_pages(times: list[list[int]]) -> None:
    log = {("a-1", "pg"): times[0], ("a-1", "pool"): times[1]}
    page = merge(ask(log, None, 99, True, 99), 99, ascending=True)
    assert [int(entry.time) for _, _, entry in page.entries] == sorted(times[0] + times[1])


NEGATIVE = write_offset({"a": {"pg": LogPosition(FILE, -1)}})


@pytest.mark.parametrize("text", ["////", "x", "é", "e30" * 4000, NEGATIVE, "W10"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(Incorrect, match=r"offset: must be"):
        read_offset(text)


@pytest.mark.parametrize(
    ("node", "unit", "file"),
    [
        ("a\0", "pg", FILE), ("../a", "pg", FILE), ("", "pg", FILE), ("a" * 81, "pg", FILE), ("ä", "pg", FILE),
        ("a-1", "p\0", FILE), ("a-1", "", FILE), ("a-1", "p" * 17, FILE), ("a-1", "p\n", FILE), ("a-1", "\u0662", FILE),
        ("a-1", "pg", "\0"), ("a-1", "pg", f"{FILE}\n"), ("a-1", "pg", FILE.replace("6", "\u0666")),
        ("a-1", "pg", "x" * 29),
    ],
)  # fmt: skip
def test_no_part_of_an_offset_holds_what_no_host_wrote(node: str, unit: str, file: str) -> None:
    with pytest.raises(Incorrect, match=r"offset: must be"):
        read_offset(write_offset({node: {unit: LogPosition(file, 0)}}))


@pytest.mark.parametrize("rest", ['":{"p":["",0,' + "[" * 5900, '\\ud800":{"p":["",0]}}', '":{"p":["",1e400]}}'])
def test_json_that_nothing_wrote_is_refused(rest: str) -> None:
    with pytest.raises(Incorrect, match=r"offset: must be"):
        read_offset(base64.urlsafe_b64encode(f'{{"a{rest}'.encode()).decode().rstrip("="))


def test_an_offset_into_nothing_is_read() -> None:
    place = {"a-1": {"pg": LogPosition()}}
    assert read_offset(write_offset(place)) == place
