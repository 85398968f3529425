"""What the agent tells of nodes beside their status: logs when asked, samples by itself, and each node's exporter.

Nothing here may hold up or change a node: what fails is logged and tried again later.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

from pgherd.agent import report
from pgherd.agent.converge import Convergence, Host
from pgherd.agent.exporting import Exporting
from pgherd.agent.link import Link
from pgherd.agent.logs import Answers
from pgherd.agent.metering import Meters
from pgherd.drivers import exporter, postgres, statistics
from pgherd.drivers.postgres import Observation, SqlRefused
from pgherd.drivers.traffic import Counters
from pgherd.errors import PgherdError

log = logging.getLogger("pgherd.agent")

_SEND_EVERY = 5.0  # seconds between batches of samples
_RETRY = 30.0


class Telemetry:
    """Of one host. `knows` says whether a node is one of this host's."""

    def __init__(self, host: Host, program: exporter.Program | None, knows: Callable[[str], bool], link: Link) -> None:
        self._host, self._program, self._link = host, program, link
        self._answers = Answers(host.home, knows, link.wake)
        self._meters = Meters(host, Counters(host.home.root), exports=program is not None)
        self._send_at = 0.0
        self._exporters: dict[str, tuple[object, float]] = {}  # node -> what is in force, and when to look again

    # --- main thread ---------------------------------------------------------------------------------------

    def exchange(self) -> None:
        """Take questions, send answers and samples. Raises Unavailable."""
        for question in self._link.questions():
            self._answers.take(question)
        for question, units in self._answers.ready():
            self._link.answer(question, units)
        now = time.monotonic()
        if now >= self._send_at and (samples := self._meters.unsent()):
            self._link.samples(samples)
            self._meters.sent(samples)
            self._send_at = now + _SEND_EVERY

    def stop(self) -> None:
        """Begin nothing more."""
        self._answers.stop()

    def forget(self, node_id: str) -> None:
        """The node is gone from this host."""
        self._meters.forget(node_id)
        self._exporters.pop(node_id, None)

    # --- one node, in the thread that looks after it -------------------------------------------------------

    def observe(self, convergence: Convergence) -> Observation:
        """Ask the cluster, for its counters too when they are due; a node that cannot count runs all the same."""
        ask = partial(postgres.observe, convergence.cluster, convergence.cut)
        if not self._meters.is_due(convergence.spec.node_id):
            return ask()
        try:
            return ask(more=statistics.asking(exporter.is_prepared()))
        except SqlRefused as error:
            log.warning("node %s: its counters: %s", convergence.spec.node_id, error)
            return ask()

    def observed(self, convergence: Convergence, seen: Observation, disk_used: int, disk_size: int) -> None:
        """A node that runs was observed: sample it, and look after its exporter. Never fails."""
        prepared = True
        with self._logged(convergence, "its sample"):
            if bytes(seen.more) != b"null":
                counted = statistics.parse(bytes(seen.more))
                prepared = counted.monitor
                self._meters.take(convergence, counted, disk_used, disk_size)
        with self._logged(convergence, "its exporter"):
            self._ensure_exporter(convergence, prepared)

    @contextlib.contextmanager
    def _logged(self, convergence: Convergence, what: str) -> Iterator[None]:
        try:
            yield
        except (PgherdError, OSError) as error:
            why = report.describe(error, self._host.home.root)
            log.warning("node %s: %s: %s", convergence.spec.node_id, what, why)

    def _ensure_exporter(self, convergence: Convergence, prepared: bool) -> None:
        spec, now = convergence.spec, time.monotonic()
        groups = self._host.limits.groups(spec.node_id)
        filtered = not self._host.firewall.problem
        run = Exporting(
            self._host.supervisor, self._program, spec, convergence.cluster, self._host.private_key, filtered, groups
        )
        wished = (spec.monitor, spec.port, tuple(run.addresses), spec.version)
        known, look_at = self._exporters.get(spec.node_id, (None, 0.0))
        if known == wished and prepared and run.runs():
            return
        if now < look_at:
            return
        self._exporters[spec.node_id] = (None, now + _RETRY)
        run.ensure()
        self._exporters[spec.node_id] = (wished, now)
