"""What a node's PostgreSQL counts of itself: one SQL expression beside the observation, and what it answers."""

from __future__ import annotations

import math

import msgspec

from pgherd.errors import HostFault

#: Sessions of the platform; what they do is not the tenant's.
_PLATFORM = "('postgres', 'pgherd_pooler', 'pgherd_monitor')"
_MOST = 1e30  # what a column of type real holds; no counter comes near
#: Most tables that are told of, which each are two dozen series, and milliseconds that PostgreSQL has to find them.
MOST_TABLES, _TABLES_WITHIN = 50, 2000
_MOST_ANSWER = 256 << 10  # bytes
#: As pg_stat_user_tables and pg_statio_user_tables have it, which would count all tables before the first is shown:
#: name -> SQL about the table `c`.
_OF_TABLE = {
    "seq_scan": "pg_stat_get_numscans(c.oid)",
    "seq_tup_read": "pg_stat_get_tuples_returned(c.oid)",
    "idx_scan": "i.scans",
    "idx_tup_fetch": "i.fetched + pg_stat_get_tuples_fetched(c.oid)",
    "n_tup_ins": "pg_stat_get_tuples_inserted(c.oid)",
    "n_tup_upd": "pg_stat_get_tuples_updated(c.oid)",
    "n_tup_del": "pg_stat_get_tuples_deleted(c.oid)",
    "n_tup_hot_upd": "pg_stat_get_tuples_hot_updated(c.oid)",
    "n_live_tup": "pg_stat_get_live_tuples(c.oid)",
    "n_dead_tup": "pg_stat_get_dead_tuples(c.oid)",
    "n_mod_since_analyze": "pg_stat_get_mod_since_analyze(c.oid)",
    "last_vacuum": "extract(epoch FROM pg_stat_get_last_vacuum_time(c.oid))",
    "last_autovacuum": "extract(epoch FROM pg_stat_get_last_autovacuum_time(c.oid))",
    "last_analyze": "extract(epoch FROM pg_stat_get_last_analyze_time(c.oid))",
    "last_autoanalyze": "extract(epoch FROM pg_stat_get_last_autoanalyze_time(c.oid))",
    "vacuum_count": "pg_stat_get_vacuum_count(c.oid)",
    "autovacuum_count": "pg_stat_get_autovacuum_count(c.oid)",
    "analyze_count": "pg_stat_get_analyze_count(c.oid)",
    "autoanalyze_count": "pg_stat_get_autoanalyze_count(c.oid)",
    "heap_blks_read": "pg_stat_get_blocks_fetched(c.oid) - pg_stat_get_blocks_hit(c.oid)",
    "heap_blks_hit": "pg_stat_get_blocks_hit(c.oid)",
    "idx_blks_read": "i.blocks - i.hit",
    "idx_blks_hit": "i.hit",
}


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


class Table(msgspec.Struct, frozen=True):
    """What is counted of one table, by the names of _OF_TABLE; times are unix seconds, 0 for never."""

    datname: str
    schemaname: str
    relname: str
    counted: dict[str, float]


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


#: What the session of `asking_for_tables` is started with.
TABLES_OPTIONS = {
    "statement_timeout": str(_TABLES_WITHIN),
    "lock_timeout": "100",
    "log_min_messages": "fatal",  # that it took too long is nothing for the tenant's log
}


def asking_for_tables() -> str:
    """SQL for the largest tables of the session's database, by what the last VACUUM or ANALYZE saw.

    One pass over pg_class however many there are, and counters of those alone; no name of a tenant's is looked up.
    """
    counted = ", ".join(f"'{name}', coalesce(({sql})::float8, 0)" for name, sql in _OF_TABLE.items())
    return f"""
    SELECT coalesce(json_agg(json_build_object('datname', current_database(), 'schemaname', n.nspname,
      'relname', c.relname, 'counted', json_build_object({counted}))), '[]')
      FROM (SELECT oid, relname, relnamespace FROM pg_class WHERE relkind IN ('r', 'm') AND relpersistence <> 't'
        AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'information_schema'))
        ORDER BY relpages DESC, oid LIMIT {MOST_TABLES}) c
      JOIN pg_namespace n ON n.oid = c.relnamespace,
      LATERAL (SELECT coalesce(sum(pg_stat_get_numscans(indexrelid)), 0) AS scans,
        coalesce(sum(pg_stat_get_tuples_fetched(indexrelid)), 0) AS fetched,
        coalesce(sum(pg_stat_get_blocks_fetched(indexrelid)), 0) AS blocks,
        coalesce(sum(pg_stat_get_blocks_hit(indexrelid)), 0) AS hit FROM pg_index WHERE indrelid = c.oid) i;
    """


def parse_tables(text: str) -> list[dict[str, str | float]]:
    """Read the answer of `asking_for_tables`: names and counters of each, without those that are 0.

    Raises HostFault for anything else.
    """
    try:
        if len(text) > _MOST_ANSWER:
            raise ValueError("too long")
        found = msgspec.json.decode(text, type=list[Table])
        names = {(table.datname, table.schemaname, table.relname) for table in found}
        if len(found) > MOST_TABLES or len(names) < len(found) or any("\0" in name for n in names for name in n):
            raise ValueError("too many tables, or names that are none")
        if any(not (math.isfinite(n) and abs(n) < _MOST) for table in found for n in table.counted.values()):
            raise ValueError("counts what cannot be")
    except (msgspec.MsgspecError, ValueError) as error:
        raise HostFault("A service's PostgreSQL gives a wrong answer about tables.", detail=str(error)[:200]) from None
    return [
        {"datname": t.datname, "schemaname": t.schemaname, "relname": t.relname}
        | {name: t.counted[name] for name in _OF_TABLE if t.counted.get(name)}
        for t in found
    ]
