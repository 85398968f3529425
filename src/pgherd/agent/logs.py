"""Answers questions for the log lines of a node, in a thread of its own: whoever reads logs holds up nothing else."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgherd.drivers import log_files
from pgherd.errors import PgherdError
from pgherd.home import Home
from pgherd.telemetry import LogEntry, LogQuestion, LogUnit

log = logging.getLogger("pgherd.agent")

_MOST_LIMIT = 500
#: Unit -> its service's prefix, and how a message begins: with one of the contract's `log_line_prefix`, and as
#: PgBouncer does it.
UNITS = {
    "postgresql": (
        "node-",
        re.compile(
            rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{3})? [A-Z]+ \[\d+\](: \[\d+-1\])? |pid=\d+,user=",
        ),
    ),
    "pgbouncer": ("pool-", re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ \[\d+\] [A-Z]+ ")),
}


class Answers:
    """What was asked and not yet answered. `wake` is called when an answer waits to be sent."""

    def __init__(self, home: Home, knows: Callable[[str], bool], wake: Callable[[], None]) -> None:
        self._home, self._knows, self._wake = home, knows, wake
        self._paths = re.compile(rf"{re.escape(str(home.root))}[^\s\"':,]*/")
        self._ready: list[tuple[LogQuestion, list[LogUnit]]] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="logs")

    def take(self, question: LogQuestion) -> None:
        """Begin to answer."""
        self._pool.submit(self._answer, question)

    def ready(self) -> list[tuple[LogQuestion, list[LogUnit]]]:
        """What can be sent; it is forgotten here, for a question is not asked for long."""
        with self._lock:
            ready, self._ready = self._ready, []
        return ready

    def stop(self) -> None:
        """Answer nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: LogQuestion) -> None:
        try:
            units = [] if not self._knows(question.node_id) else [self._unit(question, unit) for unit in UNITS]
        except (PgherdError, OSError) as error:
            log.warning("node %s: its logs cannot be read: %s", question.node_id, error)
            return
        with self._lock:
            self._ready.append((question, units))
        self._wake()

    def _unit(self, question: LogQuestion, unit: str) -> LogUnit:
        prefix, begins = UNITS[unit]
        found = log_files.read(
            self._home.logs / f"{prefix}{question.node_id}", unit, begins, question.positions.get(unit),
            max(1, min(question.limit, _MOST_LIMIT)), ascending=question.ascending,
        )  # fmt: skip
        return msgspec.structs.replace(found, entries=[self._shown(entry) for entry in found.entries])

    def _shown(self, entry: LogEntry) -> LogEntry:
        """Without the host's paths."""
        return msgspec.structs.replace(entry, message=self._paths.sub("", entry.message))
