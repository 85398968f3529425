"""Logs and metrics: what the control plane asks of hosts, and what hosts say, beside specs and statuses."""

from __future__ import annotations

import msgspec


class LogPosition(msgspec.Struct, frozen=True, array_like=True):
    """A place between two lines of a log: the time stamp of its file's first line, and bytes from there.

    A file is rotated by renaming, so its name says nothing; its first stamp, to the nanosecond, stays.
    """

    file: str = ""
    offset: int = 0


class LogQuestion(msgspec.Struct, frozen=True):
    """The log lines of one node that are asked for: of each unit at most `limit` after its position, or before it.

    A unit without a position is read from its oldest line (`ascending`) or from its newest.
    """

    batch: str
    node_id: str
    limit: int
    ascending: bool
    positions: dict[str, LogPosition] = {}


class LogEntry(msgspec.Struct, frozen=True):
    """One message with the time at which the host took it (RFC 3339, UTC), and the places around it."""

    time: str
    message: str
    start: LogPosition
    end: LogPosition


class LogUnit(msgspec.Struct, frozen=True):
    """What one unit (`postgresql`, `pgbouncer`) has, in the order that was asked for. `more`: there is more that way.

    `position` is where reading began.
    """

    unit: str
    position: LogPosition
    entries: list[LogEntry]
    more: bool = False


#: What a sample holds, in this order; new ones are only ever added at the end. `*_usage` and `cache_hit_ratio` are
#: percent (of the plan); `load_average` processes that ran or waited for the disk, over 5 minutes; `oldest_transaction`
#: seconds; `mem_bytes`, `disk_bytes`, `replication_lag` and `wal_retained` bytes; connections and pool_* counts; the
#: rest are rates a second, as the mean since the sample before.
MEASURES = (
    "cpu_usage", "mem_usage", "mem_bytes", "disk_usage", "disk_bytes", "load_average", "read_bytes", "write_bytes",
    "net_receive", "net_send", "connections", "connections_active", "connections_idle_in_transaction",
    "transactions", "rollbacks", "cache_hit_ratio", "deadlocks", "temp_bytes", "rows_read", "rows_written", "wal_bytes",
    "replication_lag", "wal_retained", "oldest_transaction", "pool_clients", "pool_waiting",
)  # fmt: skip


class Sample(msgspec.Struct, frozen=True):
    """What one node used at a time (RFC 3339): a value for each of MEASURES; None: not known."""

    node_id: str
    at: str
    measured: list[float | None]
