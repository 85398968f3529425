"""How much disk a service uses, how much a file system has left, and where on it services lie.

Everything below the service's directories counts: tables, WAL, temporary files. A directory that is a file system of
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgherd import unprivileged
from pgherd.errors import HostFault
from pgherd.unprivileged import Account

_PATIENCE = 60.0  # seconds for a directory with very many files
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS of 64-bit Linux
_TOP_OF_HIERARCHIES = 0x20000  # EXT4_TOPDIR_FL


@dataclass(frozen=True)
class Space:
    """Bytes of a file system: all that it holds and what is left for ordinary users."""

    total: int
    free: int


@dataclass(frozen=True)
class Usage:
    """Bytes in use; `capacity`: of the file system of its own, 0 when it shares the host's."""

    used: int
    capacity: int


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


def usage(data: Path, others: Sequence[Path], account: Account | None) -> Usage:
    """Of a service whose data lies in `data`. Raises HostFault when it cannot be measured."""
    if os.lstat(data).st_dev != os.lstat(data.parent.parent).st_dev:
        own = space(data)
        return Usage(own.total - own.free, own.total)
    places = [str(place) for place in (data, *others) if place.exists()]
    answer = unprivileged.run(account, ["du", "-sx", "--block-size=1", "--", *places], timeout=_PATIENCE)
    # Files that vanish meanwhile make the code 1; a line for each place is there all the same.
    sizes = re.findall(rb"^(\d+)\t", answer.out, re.MULTILINE)
    if len(sizes) != len(places):
        raise HostFault("The size of a service cannot be measured.", detail=answer.err[-200:])
    return Usage(sum(map(int, sizes)), 0)
