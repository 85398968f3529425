"""Waiting for a state, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from pgherd.drivers.supervisor import Supervisor
from pgherd.errors import HostFault

_DEATHS = 5


def until_ready(ready: Callable[[], bool], supervisor: Supervisor, name: str, seconds: float) -> None:
    """Look every 20 ms until a process is ready. Raises HostFault with its last words when it dies again and again."""
    deadline = time.monotonic() + seconds
    supervisor_looked = time.monotonic()
    while not ready():
        now = time.monotonic()
        if now - supervisor_looked > 1:
            supervisor_looked = now
            if supervisor.state(name).deaths >= _DEATHS:
                raise HostFault(_last_words(supervisor, name))
        if now > deadline:
            raise HostFault(_last_words(supervisor, name), detail=f"waited {seconds:g} s")
        time.sleep(0.02)


def _last_words(supervisor: Supervisor, name: str) -> str:
    lines = supervisor.last_lines(name)[-12:]
    return f"The process {name} does not answer. Its last words:\n" + "\n".join(f"  {line}" for line in lines)
