"""Processes that work in the services' directories and are under nobody's supervision."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from pgherd.home import Home

_PATIENCE = 10.0


def await_none(home: Home, say: Callable[[str], None]) -> None:
    """After everything was stopped: wait for what an interrupted agent began (an `initdb`), and name what stays."""
    deadline = time.monotonic() + _PATIENCE
    while left := _working_in(home):
        if time.monotonic() > deadline:
            say("these processes still work in the home directory: " + ", ".join(map(str, left)))
            return
        time.sleep(0.02)


def _working_in(home: Home) -> list[int]:
    places = (f"{home.warm}/", f"{home.nodes}/")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            where = os.readlink(entry / "cwd") if os.access(entry / "cwd", os.R_OK) else ""
        except OSError:
            continue
        programs = (b"postgres", b"initdb", b"psql", b"pg_ctl")
        if os.path.basename(words[0].split(b":")[0]) in programs and any(
            place in f"{where}/" or any(place in os.fsdecode(word) for word in words) for place in places
        ):
            found.append(int(entry.name))
    return found
