"""Logs as the real s6-log writes and rotates them, read page by page meanwhile: no message is lost or seen twice."""

from __future__ import annotations

import os
import random
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgherd.agent.logs import UNITS
from pgherd.drivers import log_files
from pgherd.telemetry import LogEntry, LogPosition, LogUnit
from tests.plugins.host import until

BEGINS = UNITS["postgresql"][1]
COUNT = 3000


class Logger:
    """A real s6-log with files of 4 KiB."""

    def __init__(self, directory: Path, kept: int = 1000) -> None:
        self.directory = directory
        argv = ["s6-log", "-b", f"n{kept}", "s4096", "T", str(directory)]
        env = {"PATH": os.environ["PATH"], "TZ": "UTC0"}
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, env=env)

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def read(self, position: LogPosition | None, limit: int, *, ascending: bool) -> LogUnit:
        return log_files.read(self.directory, "postgresql", BEGINS, position, limit, ascending=ascending)

    def said(self, word: str) -> Callable[[], bool]:
        return lambda: any(word in entry.message for entry in self.read(None, 5, ascending=False).entries)


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[Logger]:
    made = Logger(tmp_path / "log")
    yield made
    made.close()


def message(number: int | str, more: str = "") -> str:
    return f"2026-11-24 10:00:00.000 UTC [7] [user=a,db=b,app=c] ERROR:  number {number}\n{more}"


def numbers(entries: list[LogEntry]) -> list[int]:
    return [int(found[1]) for entry in entries if (found := re.search(r"number (\d+)", entry.message))]


def test_pages_lose_and_repeat_nothing_while_lines_come_and_files_turn(logger: Logger) -> None:
    draw = random.Random(7)  # noqa: S311 - no secret

    def write() -> None:
        for number in range(COUNT):
            lines = "".join(f"\tline {n} {'x' * draw.randrange(200)}\n" for n in range(draw.randrange(4)))
            logger.write(message(number, lines))

    writer = threading.Thread(target=write)
    writer.start()
    forwards: list[LogEntry] = []
    position: LogPosition | None = None

    def read_on() -> bool:
        nonlocal position
        page = logger.read(position, draw.randrange(1, 60), ascending=True)
        forwards.extend(page.entries)
        position = page.entries[-1].end if page.entries else page.position
        return len(numbers(forwards)) >= COUNT

    until(read_on, 60, lambda: f"read {len(forwards)}")
    writer.join()
    assert numbers(forwards) == list(range(COUNT))
    assert len(list(logger.directory.glob("@*"))) > 50, "the files have turned"
    backwards: list[LogEntry] = []
    page = logger.read(None, 17, ascending=False)
    while page.entries:
        backwards += page.entries
        page = logger.read(page.entries[-1].start, draw.randrange(1, 60), ascending=False)
    assert numbers(backwards) == list(reversed(range(COUNT)))
    assert page.position.offset == 0 and not page.more
    whole = [entry for entry in forwards if entry in backwards]
    assert len(whole) > COUNT * 0.9, "a message that is read whole is the same in either direction"


def test_a_page_ends_where_the_next_begins_from_any_place(logger: Logger) -> None:
    logger.write("".join(message(n, "\tmore\n" * (n % 3)) for n in range(400)))
    until(logger.said("number 399"), 10)
    every = logger.read(None, 500, ascending=True).entries
    assert numbers(every) == list(range(400)) and all(e.message.count("\n") == n % 3 for n, e in enumerate(every))
    for at in (0, 1, 57, 200, 399):
        before = logger.read(every[at].start, 500, ascending=False).entries
        after = logger.read(every[at].start, 500, ascending=True).entries
        assert before == every[:at][::-1] and after == every[at:]


def test_a_place_in_a_file_that_is_gone_goes_on_with_the_oldest_line(tmp_path: Path) -> None:
    logger = Logger(tmp_path / "log", kept=2)
    logger.write(message(0))
    until(logger.said("number 0"), 10)
    first = logger.read(None, 1, ascending=True).entries[0]
    logger.write("".join(message(n) for n in range(1, 400)))
    until(logger.said("number 399"), 10)
    left = numbers(logger.read(first.end, 500, ascending=True).entries)
    assert left[0] > 1 and left == list(range(left[0], 400))
    assert logger.read(first.end, 500, ascending=False).entries == []
    logger.close()


def test_what_a_tenant_writes_stays_one_bounded_printable_message(logger: Logger) -> None:
    name = "mallory\n2026-11-24 10:00:01.000 forged\nLOG:  all is well"
    logger.write(f"2026-11-24 10:00:00.000 UTC [7] [user={name},db=b,app=c] FATAL:  number 1\n")
    logger.write(message(2, "\t\x1b[31mred\x1b[0m \u202e \x00 \r bell \x07\n"))
    logger.write(message(3, "\t" + "y" * 50_000 + "\n"))
    logger.write(message(4))
    until(logger.said("number 4"), 10)
    entries = logger.read(None, 10, ascending=True).entries
    assert numbers(entries) == [1, 2, 3, 4]
    first = entries[0].message.split("\n")
    assert len(first) == 3 and all(line.startswith("\t") for line in first[1:]), "what follows is indented"
    assert "\\x1b[31mred" in entries[1].message and "\\x202e" in entries[1].message
    assert all(c.isprintable() or c in "\n\t" for entry in entries for c in entry.message)
    assert len(entries[2].message) == log_files.MOST_TEXT
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry.time) for entry in entries)


def test_links_and_what_is_no_file_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("2026-11-24 10:00:00.000000000  " + message(1))
    directory = tmp_path / "log"
    directory.mkdir()
    (directory / "current").symlink_to(secret)
    with pytest.raises(log_files.HostFault):
        log_files.read(directory, "postgresql", BEGINS, None, 5, ascending=True)
    (directory / "current").unlink()
    os.mkfifo(directory / "current")
    assert log_files.read(directory, "postgresql", BEGINS, None, 5, ascending=True).entries == []


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    for ascending in (True, False):
        page = log_files.read(tmp_path / "none", "pgbouncer", BEGINS, LogPosition("x", 5), 5, ascending=ascending)
        assert (page.entries, page.more, page.position) == ([], False, LogPosition())
