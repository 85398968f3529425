"""The logs that s6-log writes: read in both directions, over rotated files, from places that rotation does not move.

What the lines say is a tenant's: it comes out bounded, printable, and with every line of a message but the first
indented, so that no text can pass for a message of its own. s6-log's directories belong to a user of their own;
root opens plain files in them and follows no link.
"""

from __future__ import annotations

import bisect
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgherd.errors import HostFault
from pgherd.telemetry import LogEntry, LogPosition, LogUnit

#: Most characters of a message, and most bytes of all messages of one unit in an answer.
MOST_TEXT, MOST_BYTES = 4096, 2 << 20
_WINDOW = 128 << 10  # bytes that are looked at first
_ROTATED = re.compile(r"@[0-9a-f]{24}\.[su]")
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d\.\d{9})  ?")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_TRIES = 20


@dataclass(frozen=True)
class _Part:
    """One file; `start`: where it begins if all files are thought as one."""

    stamp: str
    descriptor: int
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class _Line:
    start: int
    end: int
    text: bytes


class Journal:
    """The files of one s6-log as they are now, as one text. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._parts: list[_Part] = []
        self._current = 0  # inode of the file that is being written

    def __enter__(self) -> Journal:
        for _ in range(_TRIES):
            if self._open():
                return self
            self.__exit__()
        raise HostFault("A log is rotated faster than it can be read.", detail=str(self._directory))

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            os.close(part.descriptor)
        self._parts = []

    @property
    def end(self) -> int:
        """Where the newest complete line ends."""
        return self._parts[-1].end if self._parts else 0

    def place(self, position: LogPosition) -> int:
        """Where a position is now. Of a file that is gone: where the files after it begin."""
        for part in self._parts:
            if part.stamp == position.file:
                return part.start + max(0, min(position.offset, part.size))
        after = bisect.bisect([part.stamp for part in self._parts], position.file)
        return self._parts[after].start if after < len(self._parts) else self.end

    def position(self, place: int) -> LogPosition:
        """The position of a place; of two files' border the end of the older one, which is there already."""
        for part in self._parts:
            if place <= part.end:
                return LogPosition(part.stamp, place - part.start)
        return LogPosition()

    def lines(self, first: int, last: int) -> Iterator[_Line]:
        """The lines that lie wholly between two places."""
        for part in self._parts:
            low, high = max(first, part.start), min(last, part.end)
            if low >= high:
                continue
            if low > part.start:  # from the middle of a line only what follows it counts
                low -= 1
            data = os.pread(part.descriptor, high - low, low - part.start)
            at = 0 if low == part.start else data.find(b"\n") + 1 or len(data)
            while at < len(data):
                end = data.find(b"\n", at) + 1
                if not end:
                    if high < part.end or part is self._parts[-1]:
                        break
                    end = len(data)
                yield _Line(low + at, low + end, data[at:end].rstrip(b"\n"))
                at = end

    def _open(self) -> bool:
        names = self._names()
        start = self._current = 0
        for name in names:
            try:
                descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                return False
            seen = os.fstat(descriptor)
            self._current = seen.st_ino if name == "current" else 0
            head = os.pread(descriptor, 32, 0) if stat.S_ISREG(seen.st_mode) else b""
            size = _whole(descriptor, seen.st_size) if name == "current" else seen.st_size
            if (stamp := _STAMP.match(head)) is None or not size:
                os.close(descriptor)
                continue
            self._parts.append(_Part(stamp[0][:29].decode(), descriptor, start, size))
            start += size
        return names == self._names() and self._is_current()

    def _names(self) -> list[str]:
        try:
            found = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        rotated = sorted(name for name in found if _ROTATED.fullmatch(name))
        return rotated + [name for name in ("previous", "current") if name in found]

    def _is_current(self) -> bool:
        """Whether the file that is being written is still the one that was opened as such."""
        try:
            now = os.stat(self._directory / "current", follow_symlinks=False)
        except FileNotFoundError:
            return not self._current
        return now.st_ino == self._current


def _whole(descriptor: int, size: int) -> int:
    """The size of a file that is being written, up to the end of its last line."""
    high = size
    while high > 0:
        low = max(0, high - 16384)
        found = os.pread(descriptor, high - low, low).rfind(b"\n")
        if found >= 0:
            return low + found + 1
        high = low
    return 0


def read(
    directory: Path, unit: str, begins: re.Pattern[bytes], position: LogPosition | None, limit: int, *, ascending: bool
) -> LogUnit:
    """At most `limit` messages after `position` (`ascending`) or before it, the nearest first.

    `begins` matches the first line of a message; a line that it does not match belongs to the message before it.
    """
    with Journal(directory) as journal:
        place = (0 if ascending else journal.end) if position is None else journal.place(position)
        found, more = (_forward if ascending else _backward)(journal, place, begins, limit)
        entries: list[LogEntry] = []
        size = 0
        for lines in found:
            entry = _entry(journal, lines)
            size += len(entry.message) + 200
            if entries and size > MOST_BYTES:
                more = True
                break
            entries.append(entry)
        return LogUnit(unit, journal.position(place), entries, more)


def _forward(journal: Journal, place: int, begins: re.Pattern[bytes], limit: int) -> tuple[list[list[_Line]], bool]:
    width = _WINDOW
    while True:
        high = min(place + width, journal.end)
        found = _messages(journal.lines(place, high), begins)
        if high < journal.end and found:
            found.pop()  # its last lines may lie beyond
        if len(found) >= limit or high >= journal.end:
            return found[:limit], len(found) > limit or high < journal.end
        width *= 4


def _backward(journal: Journal, place: int, begins: re.Pattern[bytes], limit: int) -> tuple[list[list[_Line]], bool]:
    width = _WINDOW
    while True:
        low = max(0, place - width)
        found = _messages(journal.lines(low, place), begins)
        if low > 0 and found and not _is_first(found[0][0], begins):
            found = found[1:]  # its first lines lie before
        if len(found) >= limit or low == 0:
            return found[: -limit - 1 : -1], len(found) > limit or low > 0
        width *= 4


def _messages(lines: Iterator[_Line], begins: re.Pattern[bytes]) -> list[list[_Line]]:
    found: list[list[_Line]] = []
    for line in lines:
        if _is_first(line, begins) or not found:
            found.append([line])
        else:
            found[-1].append(line)
    return found


def _is_first(line: _Line, begins: re.Pattern[bytes]) -> bool:
    stamp = _STAMP.match(line.text)
    return stamp is not None and begins.match(line.text, stamp.end()) is not None


def _entry(journal: Journal, lines: list[_Line]) -> LogEntry:
    stamp = _STAMP.match(lines[0].text)
    time = f"{stamp[1].decode()}T{stamp[2][:15].decode()}Z" if stamp else "1970-01-01T00:00:00.000000Z"
    texts: list[str] = []
    left = MOST_TEXT
    for line in lines:
        found = _STAMP.match(line.text)
        text = line.text[found.end() if found else 0 :][: 4 * MOST_TEXT].decode(errors="replace")
        text = _UNPRINTABLE.sub(lambda c: f"\\x{ord(c[0]):02x}", text)
        if texts and not text.startswith("\t"):
            text = f"\t{text}"
        texts.append(text)
        left -= len(text) + 1
        if left < 0:
            break
    message = "\n".join(texts)
    if len(message) > MOST_TEXT:
        message = message[: MOST_TEXT - 1] + "…"
    return LogEntry(time, message, journal.position(lines[0].start), journal.position(lines[-1].end))
