"""Which programs are installed, noticed again when a package replaces them while the agent runs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pgherd.drivers import pgbouncer, postgres
from pgherd.settings import Settings

_ASK_EVERY = 300.0  # seconds
_Marks = tuple[tuple[str, int, int], ...]


class Installed:
    """PostgreSQL by major, and PgBouncer.

    Asking a program costs a process, so it is asked when its file changed; now and then too, as what a path names may
    be a script that calls the program proper.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.postgres: dict[str, postgres.Program] = {}
        self.pgbouncer: pgbouncer.Program | None = None
        self._marks: _Marks | None = None
        self._ask_at = 0.0
        self.look_again()

    def look_again(self) -> bool:
        """Ask again if need be; whether that was so."""
        marks, now = tuple(self._files()), time.monotonic()
        if marks == self._marks and now < self._ask_at:
            return False
        # The marks are older than the answers: what is replaced meanwhile is found at the next look.
        self.postgres = postgres.programs(self._settings.postgres_bindirs)
        self.pgbouncer = pgbouncer.program(self._settings.pgbouncer)
        self._marks, self._ask_at = marks, now + _ASK_EVERY
        return True

    def _files(self) -> Iterator[tuple[str, int, int]]:
        postgres_files = [f"{place}/postgres" for place in postgres.places(self._settings.postgres_bindirs).values()]
        for path in [*postgres_files, *pgbouncer.paths(self._settings.pgbouncer)]:
            with contextlib.suppress(OSError):
                found = os.stat(Path(path))
                yield path, found.st_ino, found.st_mtime_ns
