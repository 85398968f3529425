"""Samples of what each node uses: taken with the observation that the agent makes anyway, kept until they are sent."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pgherd.agent import exporting, pooling, report, serving
from pgherd.agent.converge import Convergence, Host
from pgherd.agent.repositories import Record
from pgherd.drivers import config_files, exporter, pgbouncer, postgres, statistics, usage
from pgherd.drivers.statistics import Statistics
from pgherd.drivers.traffic import Counters, Traffic
from pgherd.drivers.usage import Usage
from pgherd.errors import PgherdError
from pgherd.spec import NodeSpec
from pgherd.telemetry import MEASURES, Sample

log = logging.getLogger("pgherd.agent")

EVERY = 26.0  # seconds; every third observation
SOON = 5.0  # seconds from the first sample, which has no rates, to the second
_POOLER_EVERY = 50.0  # seconds; asking PgBouncer costs a process, ten times the rest
#: Seconds; asking for tables costs a process and a session of the default database. The first time it is left alone.
_TABLES_EVERY, _TABLES_AT_FIRST = 110.0, 30.0
_TABLES_OF = "defaultdb"
_LOAD_OVER = 300.0  # seconds
_MOST_UNSENT = 20_000  # samples that wait for the metadata; then the oldest go
_MOST_SENT = 2000  # in one call
_OLDEST = 7200.0  # seconds; older ones are not taken


@dataclass
class _Meter:
    """What is remembered of one node. `at` is of the monotonic clock."""

    due: float = 0.0
    at: float = 0.0
    usage: Usage | None = None
    statistics: Statistics | None = None
    load: float = 0.0
    traffic: Traffic | None = None
    port: int = 0
    pooled: dict[str, list[dict[str, str]]] | None = None
    pooler_due: float = 0.0
    tables: list[dict[str, str | float]] = field(default_factory=list)
    tables_due: float = 0.0


@dataclass
class Meters:
    """All nodes of a host; `exports`: the host has an exporter."""

    host: Host
    counters: Counters
    exports: bool = True
    _meters: dict[str, _Meter] = field(default_factory=dict)
    _unsent: deque[tuple[float, Sample]] = field(default_factory=lambda: deque(maxlen=_MOST_UNSENT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_due(self, node_id: str) -> bool:
        """Whether the next observation shall bring the node's counters."""
        return time.monotonic() >= self._meters.setdefault(node_id, _Meter()).due

    def take(self, convergence: Convergence, counted: Statistics, disk_used: int, disk_size: int) -> None:
        """Take a sample of a node that runs; the disk in bytes, and how many it may be. Raises HostFault or OSError."""
        spec, now = convergence.spec, time.monotonic()
        meter = self._meters.setdefault(spec.node_id, _Meter())
        meter.due = now + (EVERY if meter.at else SOON)
        groups = self.host.limits.groups(spec.node_id)
        used = usage.usage(groups, () if groups else usage.descendants(self._mains(spec)))
        pooled = _pooled(convergence, meter)
        meter.port = spec.port
        traffic = self.counters.of(spec.port, [m.port for m in list(self._meters.values()) if m.port])
        elapsed = now - meter.at if meter.at else 0.0
        if used is not None:
            meter.load += (1 - math.exp(-(elapsed or EVERY) / _LOAD_OVER)) * (used.running - meter.load)
        values = _measured(spec, meter, used, counted, elapsed) | {
            "disk_bytes": disk_used or None,
            "disk_usage": _percent(disk_used, disk_size) if disk_used and disk_size else None,
            "pool_clients": _sum(pooled, "cl_active", "cl_waiting"),
            "pool_waiting": _sum(pooled, "cl_waiting"),
        }
        values |= _network(traffic, meter.traffic)
        meter.at, meter.usage, meter.statistics, meter.traffic = now, used, counted, traffic
        sample = Sample(spec.node_id, report.now(), [values.get(name) for name in MEASURES])
        with self._lock:
            self._unsent.append((now, sample))
        if spec.monitor:
            if self.exports:
                _ask_tables(convergence, meter)
            proven = convergence.host.repositories.record(spec.service_id)
            text = msgspec.json.encode(_told(spec, meter, (disk_used, disk_size), pooled, proven)).decode()
            config_files.install(convergence.cluster.config, exporter.MEASURED, text, convergence.cluster.account)

    def unsent(self) -> list[Sample]:
        """The oldest samples that were not sent."""
        with self._lock:
            while self._unsent and self._unsent[0][0] < time.monotonic() - _OLDEST:
                self._unsent.popleft()
            return [sample for _, sample in list(self._unsent)[:_MOST_SENT]]

    def sent(self, samples: list[Sample]) -> None:
        """These need not be sent any more."""
        gone = {id(sample) for sample in samples}
        with self._lock:
            self._unsent = deque((e for e in self._unsent if id(e[1]) not in gone), maxlen=_MOST_UNSENT)

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        self._meters.pop(node_id, None)

    def _mains(self, spec: NodeSpec) -> list[int]:
        names = [part.service_name(spec.node_id) for part in (serving, pooling, exporting)]
        return [pid for name in names if (pid := self.host.supervisor.state(name).pid) > 0]


def _pooled(convergence: Convergence, meter: _Meter) -> dict[str, list[dict[str, str]]] | None:
    """What PgBouncer counts, or counted a moment ago; None when there is none or it does not answer."""
    if not pgbouncer.is_wanted(convergence.spec):
        meter.pooled, meter.pooler_due = None, 0.0
    elif time.monotonic() >= meter.pooler_due:
        meter.pooled = pgbouncer.counted(convergence.pooling.console)
        meter.pooler_due = time.monotonic() + _POOLER_EVERY if meter.pooled is not None else 0.0
    return meter.pooled


def _ask_tables(convergence: Convergence, meter: _Meter) -> None:
    """Have the counters of the largest tables, when they are due; of a database that does not let us in, none."""
    now = time.monotonic()
    if not meter.tables_due:
        meter.tables_due = now + _TABLES_AT_FIRST
    if now < meter.tables_due:
        return
    meter.tables_due = now + _TABLES_EVERY
    try:
        script, options = statistics.asking_for_tables(), statistics.TABLES_OPTIONS
        answer = postgres.psql(convergence.cluster, script, database=_TABLES_OF, options=options, limit=1 << 20)
        meter.tables = statistics.parse_tables(answer)
    except PgherdError as error:
        log.debug("node %s: its tables: %s", convergence.spec.node_id, error)
        meter.tables = []


def _measured(
    spec: NodeSpec, meter: _Meter, used: Usage | None, counted: Statistics, elapsed: float
) -> dict[str, float | None]:
    """The values of a sample that come from the kernel and from PostgreSQL, with rates since the last one."""

    def rate(now: Any, before: Any, name: str) -> float | None:
        if now is None or before is None or elapsed <= 0:
            return None
        high, low = getattr(now, name), getattr(before, name)
        # A counter that went back was reset: nothing is known of this time.
        return None if high is None or low is None or high < low else (high - low) / elapsed

    last, old = meter.usage, meter.statistics
    cpu = rate(used, last, "cpu")
    hit, read = rate(counted, old, "blocks_hit"), rate(counted, old, "blocks_read")
    return {
        "cpu_usage": None if cpu is None else _percent(cpu, spec.cpus or 1),
        "mem_bytes": used.memory if used else None,
        "mem_usage": _percent(used.memory, spec.memory_bytes) if used and spec.memory_bytes else None,
        "load_average": meter.load,
        "read_bytes": rate(used, last, "read"),
        "write_bytes": rate(used, last, "written"),
        "connections": counted.connections,
        "connections_active": counted.active,
        "connections_idle_in_transaction": counted.idle_in_transaction,
        "transactions": rate(counted, old, "commits"),
        "rollbacks": rate(counted, old, "rollbacks"),
        "cache_hit_ratio": None if hit is None or read is None or hit + read == 0 else _percent(hit, hit + read),
        "deadlocks": rate(counted, old, "deadlocks"),
        "temp_bytes": rate(counted, old, "temp_bytes"),
        "rows_read": rate(counted, old, "rows_read"),
        "rows_written": rate(counted, old, "rows_written"),
        "wal_bytes": rate(counted, old, "wal"),
        "replication_lag": counted.replication_lag,
        "wal_retained": counted.wal_retained,
        "oldest_transaction": counted.oldest_transaction,
    }


def _network(now: Traffic | None, before: Traffic | None) -> dict[str, float | None]:
    """The rates of bytes to and from the node's ports."""
    if now is None or before is None or now.at <= before.at or now.received < before.received or now.sent < before.sent:
        return {}
    elapsed = now.at - before.at
    received, sent = now.received - before.received, now.sent - before.sent
    return {"net_receive": received / elapsed, "net_send": sent / elapsed}


def _told(
    spec: NodeSpec, meter: _Meter, disk: tuple[int, int], pooled: dict[str, list[dict[str, str]]] | None, proven: Record
) -> dict[str, list[dict[str, Any]]]:
    """What the exporter tells beside what PostgreSQL knows; see `exporter.render_queries`."""
    service: dict[str, Any] = {"cpus": spec.cpus, "memory_limit": spec.memory_bytes, "disk_limit": disk[1]}
    service |= {"disk": disk[0], "load": meter.load, "at": time.time()}
    service |= {"verified": proven.verified_at, "sound": int(proven.sound)}
    if meter.usage is not None:
        service |= {
            "cpu": meter.usage.cpu,
            "memory": meter.usage.memory,
            "read": meter.usage.read,
            "written": meter.usage.written,
        }
    told: dict[str, list[dict[str, Any]]] = {"service": [service], "tables": list(meter.tables)}
    if pgbouncer.is_wanted(spec):
        listed = {row["list"]: row.get("items") for row in (pooled or {}).get("lists", []) if "list" in row}
        told["pooler"] = [listed | {"up": int(pooled is not None)}]
        told |= {part: (pooled or {}).get(part, []) for part in ("pools", "stats", "databases")}
    return told


def _sum(pooled: dict[str, list[dict[str, str]]] | None, *columns: str) -> float | None:
    if pooled is None:
        return None
    rows = pooled.get("pools", [])
    return float(sum(int(row[c]) for row in rows for c in columns if row.get(c, "").isdigit()))


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole
