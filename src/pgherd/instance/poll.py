"""Waiting for a state, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from pgherd.errors import HostFault


def until(reached: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Look every 20 ms until `reached`. Raises HostFault with the complaint after `seconds`."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise HostFault(complaint(), detail=f"waited {seconds:g} s")
        time.sleep(0.02)
