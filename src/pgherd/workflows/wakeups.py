"""NOTIFY turned into wake-ups for waiting threads."""

from __future__ import annotations

import logging
import threading

import psycopg

log = logging.getLogger(__name__)

#: Most services that are counted apart.
MOST = 10_000


class Wakeups:
    """Counts notifications per service. A wait never depends on one: it also ends at its time-out."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._changed = threading.Condition()
        self._total = 0
        self._forgotten = 0  # the total when the services were last forgotten
        self._last: dict[str, int] = {}  # service -> the total at its last notification
        self._stopping = threading.Event()

    def start(self) -> None:
        """Listen in a thread that ends with the process."""
        threading.Thread(target=self._listen, name="wakeups", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end at its next look."""
        self._stopping.set()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, application_name="pgherd-wakeups") as connection:
                    connection.execute("listen pgherd_status")
                    while not self._stopping.is_set():
                        for notice in connection.notifies(timeout=1, stop_after=1):
                            self._count(notice.payload)
            except psycopg.Error as error:
                log.warning("listening to the metadata failed, trying again: %s", error)
                self._stopping.wait(1)

    def _count(self, service: str) -> None:
        with self._changed:
            if len(self._last) >= MOST:  # everybody who waits looks once for nothing
                self._last.clear()
                self._forgotten = self._total
            self._total += 1
            self._last[service] = self._total
            self._changed.notify_all()

    def mark(self, service: str) -> int:
        """Where the notifications stand; taken before looking, handed to `wait` after."""
        with self._changed:
            return self._mark(service)

    def _mark(self, service: str) -> int:
        return self._last.get(service, self._forgotten)

    def wait(self, service: str, mark: int, seconds: float) -> None:
        """Return at the first notification after `mark`, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._mark(service) != mark, seconds)
