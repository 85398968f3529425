"""What a node's processes use: from its control groups where these tell it, else from /proc; files of the kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """`cpu` in seconds, `read` and `written` in bytes of disk: counters of all processes that were and are; `memory` in
    bytes without what the kernel would give up at once; `running`: processes that run or wait for the disk."""

    cpu: float
    memory: int
    read: int
    written: int
    running: int


def usage(groups: Sequence[Path], pids: Iterable[int]) -> Usage | None:
    """Of the processes in these groups (`pids` when there are none); None when there is no such process."""
    found = [process for pid in (_members(groups) or pids) if (process := _process(pid)) is not None]
    if not found:
        return None
    cpu, memory = _group_cpu(groups), _group_memory(groups)
    return Usage(
        sum(process.cpu for process in found) if cpu is None else cpu,
        sum(p.memory - p.shared for p in found) + max(p.shared for p in found) if memory is None else memory,
        sum(process.read for process in found),
        sum(process.written for process in found),
        sum(process.running for process in found),
    )


def descendants(roots: Iterable[int]) -> list[int]:
    """These processes and all below them; without control groups this is how a node's are known."""
    below: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (words := _stat(int(entry.name))) is not None:
            below.setdefault(int(words[1]), []).append(int(entry.name))
    found = list(roots)
    for pid in found:
        found.extend(below.get(pid, ()))
    return found


@dataclass(frozen=True)
class _Process:
    """`shared`: the part of its memory that it may share with the others, such as shared buffers."""

    cpu: float
    memory: int
    shared: int
    read: int
    written: int
    running: bool


def _process(pid: int) -> _Process | None:
    words = _stat(pid)
    if words is None:
        return None
    # A parent's counters hold those of its children that have ended.
    cpu = sum(int(word) for word in words[11:15]) / _TICK
    memory = shared = read = written = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = _read(Path(f"/proc/{pid}/statm")).split()
        memory, shared = int(pages[1]) * _PAGE, int(pages[2]) * _PAGE
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(": ") for line in _read(Path(f"/proc/{pid}/io")).splitlines())
        read, written = int(lines["read_bytes"]), int(lines["write_bytes"])
    return _Process(cpu, memory, shared, read, written, words[0] in ("R", "D"))


def _stat(pid: int) -> list[str] | None:
    """The words of /proc/PID/stat from the state on: what stands before it may hold anything."""
    try:
        return _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    except OSError:
        return None


def _members(groups: Sequence[Path]) -> list[int]:
    for group in groups:
        with contextlib.suppress(OSError):
            return [int(word) for word in _read(group / "cgroup.procs").split()]
    return []


def _group_cpu(groups: Sequence[Path]) -> float | None:
    for group in groups:
        with contextlib.suppress(OSError, ValueError):
            return int(_read(group / "cpuacct.usage")) / 1e9
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(_table(group / "cpu.stat")["usage_usec"]) / 1e6
    return None


def _group_memory(groups: Sequence[Path]) -> int | None:
    for group in groups:
        for total, idle in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                return max(0, int(_read(group / total)) - int(_table(group / "memory.stat")[idle]))
    return None


def _table(path: Path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in _read(path).splitlines())


def _read(path: Path) -> str:
    return path.read_text()
