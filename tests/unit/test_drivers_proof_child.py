"""What a proof makes of a repository's listing and of what pgBackRest says of it."""

from __future__ import annotations

from typing import Any

from pgherd.drivers import proof_child

HASH = "a" * 40


def listing(*segments: str) -> dict[str, Any]:
    files = {f"15-1/{s[:16]}/{s}-{HASH}.zst": {"type": "file", "time": 100 + int(s[-2:], 16)} for s in segments}
    return files | {"15-1": {"type": "path"}, "15-1/0000000100000000/000000010000000000000002.00000028.backup": {}}


def wal(running: int, timeline: int = 1) -> str:
    return proof_child.name(timeline, running)


def backup(label: str, segment: int, prior: str | None = None, error: bool = False) -> dict[str, Any]:
    where = {"start": wal(segment), "stop": wal(segment)}
    return {"label": label, "archive": where, "timestamp": {"stop": 100 + segment}, "prior": prior, "error": error}


def test_names_of_segments() -> None:
    assert wal(0x1FF, 2) == "0000000200000001000000FF"
    assert proof_child.number("0000000200000001000000FF") == (2, 0x1FF)


def test_missing_segments() -> None:
    found = proof_child.segments(listing(wal(2), wal(3), wal(6), wal(5, 2), wal(7, 2)))
    assert found[wal(6)] == 106 and len(found) == 5
    assert proof_child.missing(found, wal(2)) == [wal(4), wal(5), wal(6, 2)]
    assert proof_child.missing(found, wal(1)) == [wal(1), wal(4), wal(5), wal(6, 2)]


def test_complaints() -> None:
    said = f"""P02   INFO: invalid checksum '15-1/0000000100000000/{wal(6)}-{HASH}.zst'
    P01   INFO: invalid result 15-1/0000000100000000/{wal(7)}-{HASH}.zst: [29] raised from local-1 protocol: zst error
    P02   INFO: file missing '20261124-152845F/bundle/1'
    stanza: main
      backup: 20261124-152845F, status: invalid, total files checked: 9, total valid files: 3
      backup: 20261124-152850F, status: valid, total files checked: 9, total valid files: 9
      backup: 20261125-152850F, status: manifest missing, total files checked: 0, total valid files: 0"""
    segments, backups = proof_child.complaints(said)
    assert segments == {wal(6): "invalid checksum", wal(7): "invalid result"}
    assert backups == {"20261124-152845F": "file missing", "20261125-152850F": "manifest missing"}


def test_what_is_broken() -> None:
    found = proof_child.segments(listing(*(wal(i) for i in range(1, 20))))
    three = [backup("a", 2), backup("b", 8), backup("c", 12)]

    def spans(bad: list[str], damaged: set[str] | None = None, backups: list[dict[str, Any]] = three) -> Any:
        reached = proof_child.spans(backups, damaged or set(), found, bad)
        return proof_child.broken(backups, reached, found)

    assert spans([]) == []
    assert spans([wal(5)]) == [(104, 108)]
    assert spans([wal(15)]) == [(114, 120)]
    assert spans([wal(8)]) == [(107, 112)], "backup b needs it itself"
    assert spans([], {"b"}) == [], "a leads there"
    assert spans([], {"a"}) == [(102, 108)]
    assert spans([], {"a", "b", "c"}) == [(102, 120)]
    chained = [backup("a", 2), backup("b", 8, prior="a"), backup("c", 12)]
    assert spans([], {"a"}, chained) == [(102, 112)], "b builds on a"
    assert spans([], set(), [backup("a", 2, error=True), backup("b", 8)]) == [(102, 108)]
