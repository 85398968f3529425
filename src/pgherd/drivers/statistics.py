"""What a node's PostgreSQL counts of itself: one SQL expression beside the observation, and what it answers."""

from __future__ import annotations

import math

import msgspec

from pgherd.errors import HostFault

#: Sessions of the platform; what they do is not the tenant's.
_PLATFORM = "('postgres', 'pgherd_pooler', 'pgherd_monitor')"
_MOST = 1e30  # what a column of type real holds; no counter comes near


class Statistics(msgspec.Struct, frozen=True):
    """Counters since the last reset of all databases of tenants, and what is now. None: not known here."""

    commits: float
    rollbacks: float
    blocks_read: float
    blocks_hit: float
    deadlocks: float
    temp_bytes: float
    rows_read: float
    rows_written: float
    connections: float
    active: float
    idle_in_transaction: float
    oldest_transaction: float | None
    wal: float | None
    replication_lag: float | None
    wal_retained: float | None
    monitor: bool = False


def asking(monitor: str) -> str:
    """An SQL expression for the counters as JSON; `monitor` is an SQL condition that the answer tells, too."""
    return f"""(SELECT row_to_json(s) FROM (SELECT *, ({monitor}) AS monitor FROM
      (SELECT coalesce(sum(xact_commit), 0) AS commits, coalesce(sum(xact_rollback), 0) AS rollbacks,
         coalesce(sum(blks_read), 0) AS blocks_read, coalesce(sum(blks_hit), 0) AS blocks_hit,
         coalesce(sum(deadlocks), 0) AS deadlocks, coalesce(sum(temp_bytes), 0) AS temp_bytes,
         coalesce(sum(tup_returned), 0) AS rows_read,
         coalesce(sum(tup_inserted + tup_updated + tup_deleted), 0) AS rows_written
         FROM pg_stat_database WHERE datname <> 'postgres') d,
      (SELECT count(*) AS connections, count(*) FILTER (WHERE state = 'active') AS active,
         count(*) FILTER (WHERE state LIKE 'idle in transaction%') AS idle_in_transaction,
         extract(epoch FROM now() - min(xact_start))::float8 AS oldest_transaction
         FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename NOT IN {_PLATFORM}) a,
      (SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') END AS wal) w,
      (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) AS replication_lag FROM pg_stat_replication
         WHERE NOT pg_is_in_recovery()) r,
      (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS wal_retained FROM pg_replication_slots
         WHERE NOT pg_is_in_recovery()) l) s)"""


def parse(text: bytes) -> Statistics:
    """Read the answer of `asking`. Raises HostFault for anything else: a cluster may lie."""
    try:
        found = msgspec.json.decode(text, type=Statistics)
    except msgspec.MsgspecError as error:
        raise HostFault("A service's PostgreSQL gives a wrong answer.", detail=str(error)[:200]) from None
    for value in msgspec.structs.astuple(found):
        if value is not None and not (math.isfinite(value) and abs(value) < _MOST):
            raise HostFault("A service's PostgreSQL counts what cannot be.")
    return found
