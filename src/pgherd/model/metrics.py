"""The metrics of a service as they are shown: names, titles, and what they are made of.

The first nine are those of the hosted service, which its clients read by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgherd.telemetry import MEASURES

_BLOCK = 8192  # bytes; a node's disk accesses are counted in bytes and shown as accesses of PostgreSQL's size


@dataclass(frozen=True)
class Metric:
    """One metric: made of one measure by a function."""

    name: str
    title: str
    measure: str
    made: Callable[[float], float] = lambda value: value


@dataclass(frozen=True)
class Period:
    """What a period shows: samples of `step` seconds, `seconds` back."""

    step: int
    seconds: int


PERIODS = {
    "hour": Period(30, 3600),
    "day": Period(300, 86_400),
    "week": Period(1800, 7 * 86_400),
    "month": Period(7200, 31 * 86_400),
    "year": Period(86_400, 366 * 86_400),
}

METRICS = (
    Metric("cpu_usage", "CPU usage %", "cpu_usage"),
    Metric("disk_usage", "Disk space usage %", "disk_usage"),
    Metric("diskio_read", "Disk iops (reads)", "read_bytes", lambda value: value / _BLOCK),
    Metric("diskio_writes", "Disk iops (writes)", "write_bytes", lambda value: value / _BLOCK),
    Metric("load_average", "Load average (5 min)", "load_average"),
    Metric("mem_usage", "Memory usage %", "mem_usage"),
    Metric("mem_available", "Memory available %", "mem_usage", lambda value: max(0.0, 100 - value)),
    Metric("net_receive", "Network receive (bytes/s)", "net_receive"),
    Metric("net_send", "Network transmit (bytes/s)", "net_send"),
    Metric("mem_bytes", "Memory usage (bytes)", "mem_bytes"),
    Metric("disk_bytes", "Disk space usage (bytes)", "disk_bytes"),
    Metric("diskio_read_bytes", "Disk reads (bytes/s)", "read_bytes"),
    Metric("diskio_write_bytes", "Disk writes (bytes/s)", "write_bytes"),
    Metric("connections", "Connections", "connections"),
    Metric("connections_active", "Active connections", "connections_active"),
    Metric("connections_idle_in_transaction", "Connections idle in a transaction", "connections_idle_in_transaction"),
    Metric("oldest_transaction", "Oldest transaction (s)", "oldest_transaction"),
    Metric("transactions", "Transactions (1/s)", "transactions"),
    Metric("rollbacks", "Rollbacks (1/s)", "rollbacks"),
    Metric("deadlocks", "Deadlocks (1/s)", "deadlocks"),
    Metric("cache_hit_ratio", "Cache hit ratio %", "cache_hit_ratio"),
    Metric("temp_bytes", "Temporary files (bytes/s)", "temp_bytes"),
    Metric("rows_read", "Rows read (1/s)", "rows_read"),
    Metric("rows_written", "Rows written (1/s)", "rows_written"),
    Metric("wal_bytes", "WAL (bytes/s)", "wal_bytes"),
    Metric("replication_lag", "Replication lag (bytes)", "replication_lag"),
    Metric("wal_retained", "WAL kept for slots (bytes)", "wal_retained"),
    Metric("pool_clients", "Clients of pools", "pool_clients"),
    Metric("pool_waiting", "Clients of pools that wait", "pool_waiting"),
)

_PLACES = {name: place for place, name in enumerate(MEASURES)}


def value(metric: Metric, measured: Sequence[float | None]) -> float | None:
    """A metric's value in a sample, to three digits behind the point; a sample of an older host may lack it."""
    place = _PLACES[metric.measure]
    found = measured[place] if place < len(measured) else None
    return None if found is None else round(metric.made(found), 3)
