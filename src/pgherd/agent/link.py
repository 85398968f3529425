"""The agent's way to the control plane: the functions of the schema `host_api`, and two notifications.

One connection, used by the agent's main thread alone; `wake` may be called by any thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import time
from typing import Protocol

import msgspec
import psycopg

from pgherd.errors import Unavailable
from pgherd.spec import HostFacts, NodeSpec, NodeStatus, UnknownNode
from pgherd.telemetry import LogQuestion, LogUnit, Sample

_CHANNEL, _QUESTIONS = "pgherd_host", "pgherd_ask"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts to connect
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


class Link(Protocol):
    """What the agent needs of the control plane. All but `wake` raise Unavailable when it is away."""

    def register(self, public_key: str, facts: HostFacts) -> None:
        """Say what this host is."""

    def specs(self) -> list[NodeSpec]:
        """Every spec of this host."""

    def report(self, status: NodeStatus) -> None:
        """Say what was observed of a node."""

    def recovery_key(self) -> str:
        """The public key that secrets of unknown nodes are sealed with; empty: there is none."""

    def unknown(self, nodes: list[UnknownNode], present: list[str]) -> None:
        """Say which nodes are here that the control plane does not know; `present`: ids of all that are here."""

    def samples(self, samples: list[Sample]) -> None:
        """Say what nodes used."""

    def questions(self) -> list[LogQuestion]:
        """The log lines that are asked for; empty, and nothing is asked of the control plane, when none can be."""

    def answer(self, question: LogQuestion, units: list[LogUnit]) -> None:
        """Answer a question."""

    def wait(self, timeout: float) -> bool:
        """Wait for `wake` or a notification, `timeout` seconds at most; True when specs may have changed."""

    def wake(self) -> None:
        """End a `wait`."""


class Bell:
    """A pipe that ends a wait; both ends are this process's own."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        """End the wait, now or the next one."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def wait(self, timeout: float, *others: int) -> list[int]:
        """Wait for a ring or one of the other descriptors to be readable; returns those that are."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (self.reader, *others):
                selector.register(descriptor, selectors.EVENT_READ)
            ready = [key.fd for key, _ in selector.select(max(0.0, timeout))]
        if self.reader in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.reader, 4096)
        return [descriptor for descriptor in ready if descriptor != self.reader]


class PostgresLink:
    """The link over PostgreSQL: `conninfo` logs in as this host's own role; `host` is the host's name."""

    def __init__(self, conninfo: str, host: str) -> None:
        self._conninfo, self._host = conninfo, host
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._bell = Bell()
        self._pause, self._next_try = _FIRST_PAUSE, 0.0
        self._fresh = self._asked = False

    def register(self, public_key: str, facts: HostFacts) -> None:
        """See Link."""
        self._call("SELECT host_api.register(%s, %s::jsonb)", public_key, _json(facts))

    def specs(self) -> list[NodeSpec]:
        """See Link."""
        rows = self._call("SELECT coalesce(jsonb_agg(spec), '[]')::text FROM host_api.specs() AS s(spec)")
        return msgspec.json.decode(str(rows[0][0]), type=list[NodeSpec])

    def report(self, status: NodeStatus) -> None:
        """See Link."""
        self._call("SELECT host_api.report(%s::jsonb)", _json(status))

    def recovery_key(self) -> str:
        """See Link."""
        rows = self._call("SELECT host_api.recovery_key()")
        return str(rows[0][0] or "")

    def unknown(self, nodes: list[UnknownNode], present: list[str]) -> None:
        """See Link."""
        self._call("SELECT host_api.unknown(%s::jsonb, %s::jsonb)", _json(nodes), _json(present))

    def samples(self, samples: list[Sample]) -> None:
        """See Link."""
        self._call("SELECT host_api.samples(%s::jsonb)", _json(samples))

    def questions(self) -> list[LogQuestion]:
        """See Link."""
        if not self._asked:
            return []
        rows = self._call("SELECT coalesce(jsonb_agg(ask), '[]')::text FROM host_api.questions() AS q(ask)")
        self._asked = False
        return msgspec.json.decode(str(rows[0][0]), type=list[LogQuestion])

    def answer(self, question: LogQuestion, units: list[LogUnit]) -> None:
        """See Link."""
        script = "SELECT host_api.answer(%s::uuid, %s::uuid, %s::jsonb)"
        self._call(script, question.batch, question.node_id, _json(units))

    def wake(self) -> None:
        """See Link."""
        self._bell.ring()

    def wait(self, timeout: float) -> bool:
        """See Link; a connection that was made anew counts as a notification."""
        connection = self._connection
        if connection is None:
            self._bell.wait(min(timeout, max(0.0, self._next_try - time.monotonic())))
            return self._connect() is not None if time.monotonic() >= self._next_try else False
        if self._fresh:
            self._fresh = False
            return True
        try:
            # Notifications that came in with an earlier answer are already in the process.
            notified = self._notified(connection)
            if not notified and self._bell.wait(timeout, connection.fileno()):
                notified = self._notified(connection)
        except psycopg.Error as error:
            raise self._lost(error) from None
        return _CHANNEL in notified

    def _notified(self, connection: psycopg.Connection[tuple[object, ...]]) -> set[str]:
        channels = {n.channel for n in connection.notifies(timeout=0) if n.payload in ("", self._host)}
        self._asked = self._asked or _QUESTIONS in channels
        return channels

    def _connect(self) -> psycopg.Connection[tuple[object, ...]] | None:
        try:
            connection = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=5, prepare_threshold=2)
            connection.execute(f"LISTEN {_CHANNEL}; LISTEN {_QUESTIONS}")
        except psycopg.Error:
            self._next_try = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return None
        self._connection, self._pause, self._fresh, self._asked = connection, _FIRST_PAUSE, True, True
        return connection

    def _call(self, query: str, *values: str) -> list[tuple[object, ...]]:
        connection = self._connection
        if connection is None and time.monotonic() >= self._next_try:
            connection = self._connect()
        if connection is None:
            raise Unavailable("The metadata database is away.")
        try:
            return connection.execute(query.encode(), values).fetchall()
        except psycopg.OperationalError as error:
            raise self._lost(error) from None
        except psycopg.Error as error:
            # It is there but refuses, as during a migration: the connection is kept for the next try.
            raise Unavailable("The metadata database refuses a call.", detail=str(error)[:300]) from None

    def _lost(self, error: Exception) -> Unavailable:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection, self._next_try = None, time.monotonic() + self._pause
        return Unavailable("The metadata database is away.", detail=str(error)[:300])


def _json(told: object) -> str:
    """As jsonb takes it, which knows no NUL: one in what a service says would hold up what is told of all others."""
    text = msgspec.json.encode(told)
    return (_NUL.sub(rb"\1\\ufffd", text) if b"\\u0000" in text else text).decode()
