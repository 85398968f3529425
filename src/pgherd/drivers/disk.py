"""How much disk a service uses, how much a file system has left, and where on it services lie.

Everything below the service's directories counts: tables, WAL, temporary files; but not what the platform puts beside
them for a proof or a restore (`PLATFORM`), which no tenant asked to keep small. A directory that is a file system of
its own (a quota by mount) is asked at once; any other is added up by `du` under the service's own uid, which costs a
look at each file. A tenant who runs commands can end that child; then the size is not known, which is worth a
suspicion.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgherd import unprivileged
from pgherd.errors import HostFault
from pgherd.unprivileged import Account

#: What the platform puts into a service's `data`: proofs, data that is made, comes back or was there before a restore,
#: segments on their way. Patterns of the shell.
PLATFORM = ("proof", "making", "made-*", "returning", "before-*", "spool*")
_PATIENCE = 60.0  # seconds for a directory with very many files
_MOVED = 1 << 20  # bytes; a file system of its own that changed by less is not searched for the platform's share again
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS of 64-bit Linux
_TOP_OF_HIERARCHIES = 0x20000  # EXT4_TOPDIR_FL


@dataclass(frozen=True)
class Space:
    """Bytes of a file system: all that it holds and what is left for ordinary users."""

    total: int
    free: int


@dataclass(frozen=True)
class Usage:
    """Bytes in use; `capacity`: of the file system of its own, 0 when it shares the host's.

    `beside`: the platform's, which are in that file system too and not in `used`; 0 when it shares the host's.
    """

    used: int
    capacity: int
    beside: int = 0


def make_apart(directory: Path) -> None:
    """Let a directory exist whose subdirectories ext4 puts apart from each other (chattr(1): T). May run again.

    Next to each other, a new service's thousand files are looked for among the inodes of one that was just deleted,
    which ext4 does not use again for some seconds: with many deletes initdb takes several times as long. Other file
    systems have no such attribute and no need.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            (flags,) = struct.unpack("i", fcntl.ioctl(place, _GET_FLAGS, struct.pack("i", 0)))
            if not flags & _TOP_OF_HIERARCHIES:
                fcntl.ioctl(place, _SET_FLAGS, struct.pack("i", flags | _TOP_OF_HIERARCHIES))
        finally:
            os.close(place)


def space(directory: Path) -> Space:
    """Of the file system that holds the directory."""
    found = os.statvfs(directory)
    reserved = found.f_bfree - found.f_bavail
    return Space((found.f_blocks - reserved) * found.f_frsize, found.f_bavail * found.f_frsize)


def is_apart(data: Path) -> bool:
    """Whether a service's data is a file system of its own."""
    return os.lstat(data).st_dev != os.lstat(data.parent.parent).st_dev


def usage(data: Path, others: Sequence[Path], account: Account | None, before: Usage | None = None) -> Usage:
    """Of a service whose data lies in `data`; `before`: the last one. Raises HostFault when it cannot be measured."""
    if is_apart(data):
        own = space(data)
        taken = own.total - own.free
        if before and before.capacity == own.total and abs(taken - before.used - before.beside) < _MOVED:
            return before
        beside = min(taken, size(account, data, PLATFORM))
        return Usage(taken - beside, own.total, beside)
    places = [str(place) for place in (data, *others) if place.exists()]
    ours = [f"--exclude={_literal(data)}/{name}" for name in PLATFORM]
    answer = unprivileged.run(account, ["du", "-sx", "--block-size=1", *ours, "--", *places], timeout=_PATIENCE)
    # Files that vanish meanwhile make the code 1; a line for each place is there all the same.
    sizes = re.findall(rb"^(\d+)\t", answer.out, re.MULTILINE)
    if len(sizes) != len(places):
        raise HostFault("The size of a service cannot be measured.", detail=answer.err[-200:])
    return Usage(sum(map(int, sizes)), 0)


def size(account: Account | None, above: Path, names: Sequence[str]) -> int:
    """Bytes of what matches the `names` (patterns of the shell) in the directory `above`; 0 where there is nothing."""
    script = f'cd "$1" && du -csx --block-size=1 -- {" ".join(names)} 2>/dev/null | tail -n 1 | cut -f 1'
    answer = unprivileged.run(account, ["/bin/sh", "-c", script, "sh", str(above)], timeout=_PATIENCE)
    text = answer.out.strip()
    return int(text) if text.isdigit() else 0


def shares_blocks(directory: Path) -> bool:
    """Whether copies in the directory's file system are mostly clones, which take no room at first."""
    asked = subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=False)
    return asked.stdout.strip() in ("xfs", "btrfs")


def _literal(path: Path) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", str(path))
