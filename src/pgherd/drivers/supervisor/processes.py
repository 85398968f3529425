"""Locks, fifos and processes: who holds what, and how a process is signalled."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pgherd.drivers.supervisor.service import as_user
from pgherd.errors import HostFault


def signal(pids: list[int], name: str, user: str | None) -> None:
    """Signal under the service's own uid: a pid that was taken over by another's process is then out of reach."""
    if pids:
        kill = ["/bin/sh", "-c", f'kill -{name.removeprefix("SIG")} "$@"', "sh", *map(str, pids)]
        subprocess.run([*as_user(user), *kill], check=False, capture_output=True)


def listens(fifo: Path) -> bool:
    """Whether a process reads this fifo: the same look that s6-svok takes."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENOTDIR):
            return False
        raise HostFault("A fifo of s6 cannot be opened.", detail=str(error)) from None
    return True


def lock_free(lock: Path) -> bool:
    """Whether nobody holds this lock."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def running(command: str) -> Iterator[tuple[int, Path]]:
    """Pid and working directory of every process of this program."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if read(Path(entry.path) / "comm").strip() == command:
                    yield int(entry.name), Path(os.readlink(f"{entry.path}/cwd"))


def holds(pid: int, lock: Path) -> bool:
    """Whether a process has this lock's file open."""
    wanted = str(lock)
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) == wanted:
                    return True
    return False


def holders(lock: Path) -> list[int]:
    """Every process that has this lock's file open; who waits for it is among them."""
    return [int(e.name) for e in os.scandir("/proc") if e.name.isdigit() and holds(int(e.name), lock)]


def read(path: Path) -> str:
    """A small file's text; empty when it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def until(reached: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Wait for a state by looking every 5 ms. Raises HostFault with `complaint` when it is not reached in time."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise HostFault(f"{complaint} within {seconds:g} s.")
        time.sleep(0.005)
