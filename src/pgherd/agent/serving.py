"""A node's PostgreSQL as a process: supervised, started, restarted, reloaded, and asked until it answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pgherd.agent import report
from pgherd.drivers import postgres
from pgherd.drivers.limits import Limits
from pgherd.drivers.postgres import Cluster, NotReady, Observation
from pgherd.drivers.supervisor import Service, Supervisor
from pgherd.errors import HostFault, Interrupted
from pgherd.spec import NodeSpec

STOP_PATIENCE = 120.0  # seconds
_START_PATIENCE = 8.0  # seconds; a longer start goes on while the agent does other things
_RELOAD_PATIENCE = 5.0  # seconds
_TRIES = 5  # failed starts until s6 is told to leave it
_KILL_AFTER_MS = 60_000
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC",
    "PG_OOM_ADJUST_FILE": "/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE": "0",
}  # fmt: skip


class Broken(HostFault):
    """The node does not start; the message is the server's own last word."""


class Refused(HostFault):
    """PostgreSQL does not take the wished configuration."""


def service_name(node_id: str) -> str:
    """The name of a node's service directory."""
    return f"node-{node_id}"


@dataclass(frozen=True)
class Serving:
    """One run for one node.

    `root`: the home, which no message names; `starting` limits how many start at once on the host; `cut`: SQL that
    ends connections, a part of each look; `overtaken`: a newer spec waits, so that a wait may end with Interrupted.
    """

    supervisor: Supervisor
    limits: Limits
    root: Path
    starting: threading.BoundedSemaphore
    spec: NodeSpec
    cluster: Cluster
    cut: str
    overtaken: Callable[[], bool]

    @property
    def service(self) -> str:
        """The name of the service directory."""
        return service_name(self.spec.node_id)

    def supervise(self) -> None:
        """Have the supervisor know how to start it; it is not started by that."""
        account = self.cluster.account
        self.supervisor.write(
            self.service,
            Service(
                postgres.start_command(self.cluster, self.spec.restart),
                user=account.name if account else None,
                env=_ENVIRONMENT,
                down_signal="SIGINT",
                kill_after_ms=_KILL_AFTER_MS,
                oom_score_adj=-500,
                start=False,
                own_user=account is not None,
                groups=self.limits.groups(self.spec.node_id),
            ),
        )

    def started(self) -> Observation:
        """Start it unless it runs; what is seen as soon as it answers. Raises Broken, NotReady."""
        deadline = time.monotonic() + _START_PATIENCE
        # PostgreSQL itself would start as long as one of its addresses is free, and not be reached on the others.
        taken = self.spec.port in report.listening_ports()
        fresh = not self.supervisor.lives(self.service)
        if taken and fresh:
            raise Broken(f"Another program listens on port {self.spec.port}.")
        with self.starting:
            self.supervisor.up(self.service)
            if fresh:
                self._await_word(time.monotonic() + 0.5)
            with contextlib.suppress(NotReady):
                return self._answer(min(deadline, time.monotonic() + 1))
        return self._answer(deadline)

    def restarted(self, between: Callable[[], None]) -> Observation:
        """End and start it, with `between` done after the end; what is seen then. Raises Broken, NotReady."""
        # What is written before the end need not be written while nobody is served.
        with contextlib.suppress(HostFault):
            postgres.psql(self.cluster, "CHECKPOINT;", options={"statement_timeout": "60s"}, timeout=70)
        self.supervisor.restart(self.service, STOP_PATIENCE)
        between()
        return self._answer(time.monotonic() + _START_PATIENCE)

    def reloaded(self, seen: Observation, marker: str, *, is_new: bool) -> Observation:
        """All of the files is in force, but for what waits for a restart; what is seen then. Raises Refused.

        `seen`: the look before; `marker`: of the files; `is_new`: look at the start too: then PostgreSQL only warns of
        what a library refuses.
        """
        if seen.config != marker:
            is_new, deadline = True, time.monotonic() + _RELOAD_PATIENCE
            postgres.reload(self.cluster)
            while seen.config != marker:
                if time.monotonic() > deadline:
                    raise Refused(f"PostgreSQL does not load the settings: {seen.refused or 'no reason given'}")
                seen = postgres.observe(self.cluster, self.cut)
        if is_new and seen.refused:
            raise Refused(f"PostgreSQL does not load the settings: {seen.refused}")
        return seen

    def _await_word(self, deadline: float) -> None:
        """Wait until the log says that the server is ready: only a hint, that spares questions asked too early."""
        while time.monotonic() < deadline:
            log = "\n".join(self.supervisor.last_lines(self.service, 4096))
            if log.rfind("ready to accept connections") > log.rfind("LOG:  starting PostgreSQL"):
                return
            time.sleep(0.005)

    def _answer(self, deadline: float) -> Observation:
        """What is seen when the server answers. Raises NotReady at `deadline`, Broken when it dies again and again."""
        reason, look_at = NotReady("PostgreSQL is starting."), time.monotonic() + 0.3
        while time.monotonic() < deadline:
            if self.spec.port in report.listening_ports():
                try:
                    return postgres.observe(self.cluster, self.cut)
                except NotReady as error:
                    reason = error
            if time.monotonic() > look_at:
                self._give_up_if_broken()
                look_at = time.monotonic() + 0.3
                if self.overtaken():
                    raise Interrupted("A newer wish for this node has come.")
            time.sleep(0.01)
        raise reason

    def _give_up_if_broken(self) -> None:
        state = self.supervisor.state(self.service)
        if state.waiting:
            self.supervisor.free_stale_lock(self.service)
        if state.deaths >= _TRIES and state.since < 30:
            words = report.last_words(self.supervisor.last_lines(self.service), self.root)
            self.supervisor.down(self.service)
            raise Broken(words or "PostgreSQL ends as soon as it is started.")
