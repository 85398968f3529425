"""Named places where a test may stop a process, to prove that it can die anywhere.

Inert unless the environment names a directory in PGHERD_FAILPOINTS. Each place a process passes is
appended to `trace` there, a line `<process> <place>`. When a file `arm` holds such a line followed by
an action, the first process that passes the place removes the file and carries the action out:
`kill` (SIGKILL to itself) or `stop` (SIGSTOP to itself). When a file `twice` exists, every step is
run two times.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_directory = os.environ.get("PGHERD_FAILPOINTS")
_process = "unnamed"


def name_process(name: str) -> None:
    """Say which process this is: `api`, `worker` or `agent`."""
    global _process
    _process = name


def passing(place: str) -> None:
    """Pass the place `place`; with nothing armed this returns at once."""
    if _directory is None:
        return
    line = f"{_process} {place}"
    root = Path(_directory)
    with open(root / "trace", "a") as trace:
        trace.write(line + "\n")
    armed = root / "arm"
    try:
        wanted, action = armed.read_text().strip().rsplit(" ", 1)
        if wanted != line:
            return
        armed.rename(root / f"fired-{os.getpid()}")
    except (FileNotFoundError, ValueError):
        return
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


def runs() -> range:
    """How often a step is to be run: once, or twice when a test asks for it."""
    return range(2 if _directory is not None and (Path(_directory) / "twice").exists() else 1)
