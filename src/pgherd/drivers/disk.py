"""How much disk a service uses, and how much a file system has left.

Everything below the service's directories counts: tables, WAL, temporary files. A directory that is a file system of
its own (a quota by mount) is asked at once; any other is added up by `du` under the service's own uid, which costs a
look at each file. A tenant who runs commands can end that child; then the size is not known, which is worth a
suspicion.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgherd import unprivileged
from pgherd.errors import HostFault
from pgherd.unprivileged import Account

_PATIENCE = 60.0  # seconds for a directory with very many files


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
