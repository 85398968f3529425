"""Keeps the disk from running full: services at their plan's limit, and the fastest growers when the host is short.

It decides alone, without the control plane. A service is measured when the host's file system has taken so much since
the last time that it could be near its limit, and now and then in any case: idle services cost nothing. What is set
lies in the node's configuration (`postgres_guard`), so it stays while no agent lives, and the next agent goes on from
it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pgherd.drivers import config_files, disk, postgres, postgres_guard
from pgherd.drivers.disk import Space, Usage
from pgherd.drivers.postgres import Cluster, NotReady
from pgherd.drivers.postgres_guard import Guard
from pgherd.errors import PgherdError
from pgherd.spec import DISK_NOTICE, DISK_READ_ONLY, DISK_WRITABLE, NodeSpec

log = logging.getLogger("pgherd.agent")

GIB = 1 << 30
#: Shares of the plan's disk: read-only from here on; writable again below; transactions that go on writing are ended;
#: those of sessions that write on purpose too.
FULL, FREE, HARD, TOO_MUCH = DISK_READ_ONLY / 100, DISK_WRITABLE / 100, 0.985, 1.10
#: Share from which on a look is taken every few seconds.
NEAR = DISK_NOTICE / 100
#: Most bytes that are kept free on a host, however large its disk.
MOST_RESERVE = 20 * GIB

#: Seconds between looks at the host's file system: while nothing happens, and while it grows by more than `_FAST`.
_TICK, _SHORT_TICK = 0.5, 0.1
_FAST = 1 << 20  # bytes within one tick; less than that is no growth worth a measurement
#: Seconds between measurements: while nothing happens on the host; of a service far from its limit; of one near it.
_IDLE, _RARELY, _OFTEN = 600.0, 60.0, 3.0
_SHARE = 10  # a measurement takes at most one tenth of the time
_ON_PURPOSE = 2.0  # seconds that a session may write which was told not to, while far over the limit
_FRESH = 10.0  # seconds for which a rate says something
_CREEPS = 32 << 10  # bytes a second that every PostgreSQL may grow
_AT_ONCE = 4  # measurements
_SEGMENT = 16 << 20


@dataclass
class Meter:
    """What is known of one service's disk. `rate`: bytes a second; `grown`, `moved`: the watch's at that time."""

    spec: NodeSpec
    cluster: Cluster
    usage: Usage | None = None
    at: float = float("-inf")
    rate: float = 0.0
    cost: float = 0.0
    grown: int = 0
    moved: int = 0
    guard: Guard = field(default_factory=Guard)
    loaded: bool = False
    busy: bool = False

    @property
    def share(self) -> float:
        """Of the plan's disk, or of the service's own file system when less of that is left; there the platform's
        files take room too."""
        if self.usage is None:
            return 0.0
        planned = self.usage.used / self.spec.disk_bytes if self.spec.disk_bytes else 0.0
        own = (self.usage.used + self.usage.beside) / self.usage.capacity if self.usage.capacity else 0.0
        return max(planned, own)

    @property
    def left(self) -> float:
        """Bytes until it is full."""
        if self.usage is None or not self.share:
            return float("inf")
        return max(0.0, self.usage.used * (FULL / self.share - 1))

    @property
    def runs(self) -> bool:
        """Whether it is to run; a stopped one does not grow, and loads its guard when it starts."""
        return self.spec.desired == "running"

    @property
    def shares_the_host(self) -> bool:
        """Whether it takes from the host's file system."""
        return self.usage is None or not self.usage.capacity


class Watch:
    """One a host. `specs` gives those of its nodes, `cluster_of` where a node lies, None before it has its directories;
    `changed` is told which node's guard was switched. `reserve_percent` of `directory`'s file system is kept free."""

    def __init__(
        self,
        directory: Path,
        reserve_percent: int,
        specs: Callable[[], list[NodeSpec]],
        cluster_of: Callable[[NodeSpec], Cluster | None],
        changed: Callable[[str], None],
    ) -> None:
        self._directory, self._percent = directory, reserve_percent
        self._specs, self._cluster_of, self._changed = specs, cluster_of, changed
        self.meters: dict[str, Meter] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="disk")
        self._free: int | None = None
        # Bytes that the host's file system has taken since the start, and taken or given back.
        self._grown = self._moved = 0
        self._picked = 0.0
        self._tick = _TICK

    def run(self, stopping: threading.Event) -> None:
        """Watch until `stopping`."""
        while not stopping.wait(self._tick):
            try:
                self.turn()
            except Exception:
                log.exception("the watch over the disk failed; it is tried again")
        self._pool.shutdown(wait=False, cancel_futures=True)

    def usage(self, node_id: str) -> Usage | None:
        """What a node uses, as last measured; None: not yet."""
        meter = self.meters.get(node_id)
        return meter.usage if meter else None

    def is_full(self) -> bool:
        """Whether the host's file system has no room for as much as a segment of WAL."""
        return self._free is not None and self._free < _SEGMENT

    def turn(self) -> None:
        """Look at the host's file system, and have measured what is due."""
        if not self._directory.exists():
            return
        host = disk.space(self._directory)
        taken = (host.free if self._free is None else self._free) - host.free
        grown, self._free = max(0, taken), host.free
        self._grown, self._moved = self._grown + grown, self._moved + abs(taken)
        self._tick = _SHORT_TICK if grown > _FAST else _TICK
        self._know()
        self._guard_host(host)  # before the measurements, which keep a meter busy
        for node_id, meter in self.meters.items():
            if not meter.busy and self._is_due(meter, host):
                meter.busy = True
                self._pool.submit(self._measure, node_id, meter)

    def _know(self) -> None:
        there = {spec.node_id: spec for spec in self._specs() if spec.desired in ("running", "stopped")}
        for gone in self.meters.keys() - there.keys():
            del self.meters[gone]
        for node_id, spec in there.items():
            meter = self.meters.get(node_id)
            if meter is None:
                if cluster := self._cluster_of(spec):
                    self.meters[node_id] = Meter(spec, cluster, guard=guard_of(cluster))
            elif meter.spec is not spec:
                meter.spec, meter.at = spec, float("-inf")

    def _is_due(self, meter: Meter, host: Space) -> bool:
        age = time.monotonic() - meter.at
        if age < meter.cost * _SHARE:
            return False
        if not meter.shares_the_host:
            return True  # one question to the kernel
        short = host.free < 2 * self._reserve(host)
        if meter.runs and (meter.share >= NEAR or meter.guard.why or not meter.loaded or short):
            # Many at once, as on a host that runs short: all of them together take their share of the time.
            together = sum(other.cost for other in self.meters.values())
            if age >= max(_OFTEN, together * _SHARE):
                return True
        # Within a tick frees hide what others take: all that is left, to the service or to the host, is not waited for.
        left = min(meter.left, max(0, host.free - self._reserve(host)))
        growth = self._grown - meter.grown
        return age >= (_RARELY if self._moved - meter.moved >= _FAST else _IDLE) or growth >= max(left / 4, _FAST)

    def _reserve(self, host: Space) -> int:
        return reserve_of(host, self._percent)

    # --- one service, in a thread of the pool --------------------------------------------------------------

    def _measure(self, node_id: str, meter: Meter) -> None:
        begun, grown, moved, cluster = time.monotonic(), self._grown, self._moved, meter.cluster
        try:
            usage = disk.usage(cluster.directory / "data", [cluster.run], cluster.account, meter.usage)
            if meter.usage is not None and begun > meter.at:
                meter.rate = max(0.0, (usage.used - meter.usage.used) / (begun - meter.at))
            meter.usage = usage
        except (PgherdError, OSError) as error:
            log.warning("node %s: its disk use is not known: %s", node_id, error)
            meter.rate = float("inf")
        meter.at, meter.grown, meter.moved = begun, grown, moved
        try:
            self._decide(node_id, meter)
        except NotReady:
            meter.loaded = False
        except (PgherdError, OSError) as error:
            log.warning("node %s: the disk's guard: %s", node_id, error)
        finally:
            meter.cost, meter.busy = time.monotonic() - begun, False

    def _decide(self, node_id: str, meter: Meter) -> None:
        if not meter.guard.why and meter.share >= FULL:
            self._set(node_id, meter, "plan")
        elif meter.guard.why == "plan" and meter.share < FREE:
            self._set(node_id, meter, "")
        self._ensure_loaded(node_id, meter)
        if not meter.runs:
            return
        if meter.guard.why and meter.share >= HARD:
            self._end_writers(node_id, meter, meter.guard.since)
        if meter.guard.why and meter.share >= TOO_MUCH:
            self._end_writers(node_id, meter, time.time() - _ON_PURPOSE)

    def _set(self, node_id: str, meter: Meter, why: str) -> None:
        log.warning(
            "node %s: %s, at %.1f %% of its disk",
            node_id,
            f"read-only ({why})" if why else "writable",
            meter.share * 100,
        )
        meter.guard, meter.loaded = Guard(why, int(time.time()) + 1 if why else 0), False
        _write(meter.cluster, meter.guard)

    def _ensure_loaded(self, node_id: str, meter: Meter) -> None:
        if meter.loaded or not meter.runs:
            return
        if guard_of(meter.cluster) != meter.guard:
            _write(meter.cluster, meter.guard)
        if postgres.psql(meter.cluster, postgres_guard.looking()).strip() != meter.guard.word:
            postgres.reload(meter.cluster)
            self._changed(node_id)
            return  # seen at the next look, which is soon
        meter.loaded = True
        self._changed(node_id)

    def _end_writers(self, node_id: str, meter: Meter, began_before: float) -> None:
        if ended := int(postgres.psql(meter.cluster, postgres_guard.ending_writers(began_before))):
            log.warning("node %s: %d sessions ended that went on writing to a full disk", node_id, ended)

    # --- the host ------------------------------------------------------------------------------------------

    def _guard_host(self, host: Space) -> None:
        reserve, now = self._reserve(host), time.monotonic()
        sharing = [(node_id, meter) for node_id, meter in self.meters.items() if meter.shares_the_host]
        if host.free > reserve + reserve // 10:
            for node_id, meter in sharing:
                if meter.guard.why == "host" and not meter.busy:
                    self._switch(node_id, meter, "plan" if meter.share >= FULL else "")
            return
        if host.free >= reserve or now - self._picked < 1.0:
            return
        growers = [(m.rate, n, m) for n, m in sharing if not m.guard.why and m.rate > _CREEPS and now - m.at < _FRESH]
        growers.sort(key=lambda grower: -grower[0])
        # The fastest one, and look again; all of them when half of the reserve is gone.
        for _, node_id, meter in growers if host.free < reserve // 2 else growers[:1]:
            if self._switch(node_id, meter, "host"):
                self._picked = now

    def _switch(self, node_id: str, meter: Meter, why: str) -> bool:
        """Set the guard, in a thread; False when the meter is busy, to be tried again at the next look."""

        def switch() -> None:
            try:
                self._set(node_id, meter, why)
                self._ensure_loaded(node_id, meter)
                if why == "host":
                    self._end_writers(node_id, meter, time.time())
            except (PgherdError, OSError) as error:
                log.warning("node %s: the disk's guard: %s", node_id, error)
            finally:
                meter.busy = False

        if meter.busy:
            return False
        meter.busy = True
        self._pool.submit(switch)
        return True


def reserve_of(host: Space, percent: int) -> int:
    """Bytes of the host's file system that are kept free."""
    return min(host.total * percent // 100, MOST_RESERVE)


def kept_free(cluster: Cluster, percent: int) -> int:
    """Bytes that what the platform makes beside a node's data must leave free, so that no service becomes read-only.

    `percent`: the host's reserve. Of a file system of the node's own it is what makes it writable again.
    """
    data = cluster.directory / "data"
    own = disk.space(data)
    if disk.is_apart(data):
        return own.total * (100 - DISK_WRITABLE) // 100
    reserve = reserve_of(own, percent)
    return reserve + reserve // 10


def guard_of(cluster: Cluster) -> Guard:
    """The guard that is set for a node."""
    try:
        return postgres_guard.parse((cluster.config / postgres_guard.FILE).read_text())
    except OSError:
        return Guard()


def ensure_file(cluster: Cluster) -> None:
    """There is a file for postgresql.conf to include; a guard that is set stays."""
    if not (cluster.config / postgres_guard.FILE).exists():
        _write(cluster, Guard())


def _write(cluster: Cluster, guard: Guard) -> None:
    config_files.install(cluster.config, postgres_guard.FILE, postgres_guard.render(guard), cluster.account)
