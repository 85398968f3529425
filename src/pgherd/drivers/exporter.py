"""The Prometheus exporter of a node: Debian's postgres_exporter, its configuration, and the role that it logs in as.

It runs as the service's own OS user and speaks TLS and basic authentication by itself. It logs in as a role that may
read statistics and nothing else; it never is anybody else first. What PostgreSQL does not know of, such as PgBouncer
and the node's memory, the agent leaves in `measured.json` beside the configuration; a function of the role reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgherd.errors import HostFault

ROLE = "pgherd_monitor"
USER = "prometheus"
MEASURED = "measured.json"
FILES = ("exporter.yml", "exporter-queries.yml", MEASURED)
_HASH = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")
#: What a tenant sets for its own statements shall not fill its log with these, nor may it hold them up.
_SETTINGS = {
    "log_min_duration_statement": "-1",
    "log_statement": "none",
    "search_path": "pg_catalog",
    "default_transaction_read_only": "on",
    "statement_timeout": "10000",
    "lock_timeout": "1000",
    "jit": "off",
}
#: Go takes a core's worth of threads and twice its heap by itself; hundreds of these share a host.
_ENVIRONMENT = {"GOMAXPROCS": "1", "GOGC": "20", "GOMEMLIMIT": "12MiB"}


@dataclass(frozen=True)
class Program:
    """An installed exporter."""

    path: str
    version: str


def program(setting: str) -> Program | None:
    """The exporter that `setting` names, else Debian's. None: there is none."""
    path = setting or "/usr/bin/prometheus-postgres-exporter"
    try:
        asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"postgres_exporter, version (\d+\.\d+(?:\.\d+)*)", asked.stdout + asked.stderr)
    return Program(path, found[1]) if found else None


def render_web(config: Path, hashed: str) -> str:
    """The file of --web.config.file; it is read with every connection, so that a renewed certificate counts at once."""
    if not _HASH.fullmatch(hashed):
        raise HostFault("The hash of a monitoring password is not one of bcrypt.")
    return (
        "# Written by pgherd; changes are overwritten.\n"
        "tls_server_config:\n"
        f"  cert_file: {json.dumps(str(config / 'server.crt'))}\n"
        f"  key_file: {json.dumps(str(config / 'server.key'))}\n"
        "  min_version: TLS12\n"
        "basic_auth_users:\n"
        f"  {USER}: {json.dumps(hashed)}\n"
    )


def command(found: Program, config: Path, addresses: Sequence[str], major: int) -> list[str]:
    """The command line; it holds no secret."""
    argv = [found.path, f"--web.config.file={config / 'exporter.yml'}", "--log.level=warn"]
    argv += [f"--web.listen-address={address}" for address in addresses]
    argv.append(f"--extend.query-path={config / 'exporter-queries.yml'}")
    if major >= 17:
        argv.append("--no-collector.bgwriter")  # 0.11 asks for columns that 17 has moved; see render_queries
    return argv


def environment(run: Path, port: int, queries: str) -> dict[str, str]:
    """Where it logs in: the node's own socket, by the operating system's word.

    `queries` is what it was started with: it reads them once, so that others are a reason to start it again.
    """
    parts = {"host": run, "port": port, "user": ROLE, "dbname": "postgres", "sslmode": "disable"}
    words = [f"{name}='{str(value).translate(_QUOTED)}'" for name, value in parts.items()]
    known = {"PGHERD_QUERIES": hashlib.sha256(queries.encode()).hexdigest()[:16]}
    return _ENVIRONMENT | known | {"DATA_SOURCE_NAME": " ".join([*words, "application_name=pgherd-monitor"])}


_QUOTED = str.maketrans({"'": "\\'", "\\": "\\\\"})


def preparing() -> str:
    """SQL for the database `postgres`: the role, and what it may see. May run again.

    Up to PostgreSQL 15 a tenant's CREATEROLE reaches this role, so each run takes back what was given to it or made of
    it. A tenant that is let into the role sees statistics of its own service; `measured` answers nobody but who logged
    in as the role, which no client can.
    """
    settings = "".join(f"ALTER ROLE {ROLE} SET {name} = '{value}';\n" for name, value in _SETTINGS.items())
    return f"""
    BEGIN;
    SELECT 'CREATE ROLE {ROLE}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') \\gexec
    ALTER ROLE {ROLE} LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
      CONNECTION LIMIT 5 PASSWORD NULL VALID UNTIL 'infinity';
    ALTER ROLE {ROLE} RESET ALL;
    ALTER ROLE {ROLE} IN DATABASE postgres RESET ALL;
    {settings}
    SELECT format('REVOKE %I FROM %I', r.rolname, m.rolname) FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid
      JOIN pg_roles m ON m.oid = a.member WHERE '{ROLE}' IN (r.rolname, m.rolname) \\gexec
    GRANT pg_monitor TO {ROLE};
    CREATE SCHEMA IF NOT EXISTS {ROLE};
    CREATE OR REPLACE FUNCTION {ROLE}.measured(part text) RETURNS SETOF jsonb
      LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT jsonb_array_elements(coalesce(pg_read_file(regexp_replace(current_setting('config_file'), '[^/]*$',
            '{MEASURED}'), 0, 8388608, true)::jsonb -> part, '[]')) WHERE session_user = '{ROLE}' $$;
    REVOKE ALL ON FUNCTION {ROLE}.measured(text) FROM PUBLIC;
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    GRANT CONNECT ON DATABASE postgres TO {ROLE};
    GRANT USAGE ON SCHEMA {ROLE} TO {ROLE};
    GRANT EXECUTE ON FUNCTION {ROLE}.measured(text) TO {ROLE};
    COMMIT;
    """


def is_prepared() -> str:
    """An SQL condition: nothing has to be prepared again."""
    settings = ", ".join(f"'{name}={value}'" for name, value in _SETTINGS.items())
    return f"""EXISTS (SELECT FROM pg_roles r WHERE rolname = '{ROLE}' AND rolcanlogin AND rolinherit
      AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls) AND rolconnlimit = 5
      AND rolconfig = ARRAY[{settings}] AND (rolvaliduntil IS NULL OR rolvaliduntil = 'infinity')
      AND to_regprocedure('{ROLE}.measured(text)') IS NOT NULL
      AND (SELECT array_agg(a.roleid::regrole::text || '>' || a.member::regrole::text) FROM pg_auth_members a
             WHERE r.oid IN (a.roleid, a.member)) = ARRAY['pg_monitor>{ROLE}'])"""


# --- what is told beside the exporter's own metrics ------------------------------------------------------------------

#: Namespace -> FROM, and numbers: (name, SQL, kind, meaning). What Debian's exporter leaves to whoever runs it.
_SERVER: Mapping[str, tuple[str, Sequence[tuple[str, str, str, str]]]] = {
    "pg_postmaster": ("", (
        ("start_time_seconds", "extract(epoch FROM pg_postmaster_start_time())", "GAUGE", "When PostgreSQL started"),
    )),
    "pg_replication": (
        "FROM (SELECT CASE WHEN pg_is_in_recovery() THEN greatest(0, extract(epoch FROM"
        " now() - pg_last_xact_replay_timestamp())) ELSE 0 END AS seconds) r",
        (
            ("lag", "seconds", "GAUGE", "How far a standby is behind; 0 on a primary"),
            ("lag_seconds", "seconds", "GAUGE", "How far a standby is behind; 0 on a primary"),
            ("is_replica", "pg_is_in_recovery()::int", "GAUGE", "Whether it is a standby"),
        ),
    ),
}  # fmt: skip
#: The columns of pg_stat_bgwriter up to 16, and where 17 has moved them. Backends wrote whatever neither the
#: checkpointer nor the background writer did.
_MOVED = {
    "checkpoints_timed": "c.num_timed",
    "checkpoints_req": "c.num_requested",
    "checkpoint_write_time": "c.write_time",
    "checkpoint_sync_time": "c.sync_time",
    "buffers_checkpoint": "c.buffers_written",
    "buffers_clean": "w.buffers_clean",
    "maxwritten_clean": "w.maxwritten_clean",
    "buffers_backend": "b.blocks",
    "buffers_backend_fsync": "b.fsyncs",
    "buffers_alloc": "w.buffers_alloc",
    "stats_reset": "extract(epoch FROM w.stats_reset)",
}
_MOVED_TO = (
    "FROM pg_stat_bgwriter w, pg_stat_checkpointer c,"
    " (SELECT {blocks} AS blocks, coalesce(sum(fsyncs), 0) AS fsyncs FROM pg_stat_io"
    " WHERE object = 'relation' AND backend_type NOT IN ('checkpointer', 'background writer')) b"
)
#: As _SERVER, on PostgreSQL 17 and newer.
_WRITES: Mapping[str, tuple[str, Sequence[tuple[str, str, str, str]]]] = {
    "pg_stat_checkpointer": ("FROM pg_stat_checkpointer", (
        ("num_timed_total", "num_timed", "COUNTER", "Checkpoints that were due"),
        ("num_requested_total", "num_requested", "COUNTER", "Checkpoints that were asked for"),
        ("restartpoints_timed_total", "restartpoints_timed", "COUNTER", "Restartpoints that were due"),
        ("restartpoints_req_total", "restartpoints_req", "COUNTER", "Restartpoints that were asked for"),
        ("restartpoints_done_total", "restartpoints_done", "COUNTER", "Restartpoints that were made"),
        ("write_time_total", "write_time", "COUNTER", "Milliseconds of writing"),
        ("sync_time_total", "sync_time", "COUNTER", "Milliseconds of syncing"),
        ("buffers_written_total", "buffers_written", "COUNTER", "Buffers that checkpoints and restartpoints wrote"),
        ("stats_reset_total", "extract(epoch FROM stats_reset)", "COUNTER", "When these were reset"),
    )),
}  # fmt: skip
#: 17 counts in pieces of `op_bytes`, 18 in bytes.
_BLOCKS = {
    17: "coalesce(sum(writes), 0) + coalesce(sum(extends), 0)",
    18: "round((coalesce(sum(write_bytes), 0) + coalesce(sum(extend_bytes), 0))"
    " / current_setting('block_size')::numeric)",
}

_STATS = (
    ("sql_transactions_pooled_total", "total_xact_count", "COUNTER", "SQL transactions", "1"),
    ("queries_pooled_total", "total_query_count", "COUNTER", "SQL queries", "1"),
    ("received_bytes_total", "total_received", "COUNTER", "Bytes from clients", "1"),
    ("sent_bytes_total", "total_sent", "COUNTER", "Bytes to clients", "1"),
    ("server_in_transaction_seconds_total", "total_xact_time", "COUNTER", "Time in transactions", "1e-6"),
    ("queries_duration_seconds_total", "total_query_time", "COUNTER", "Time in queries", "1e-6"),
    ("client_wait_seconds_total", "total_wait_time", "COUNTER", "Time that clients waited for servers", "1e-6"),
)
_TABLE = tuple((name, name) for name in ("datname", "schemaname", "relname"))
#: Namespace -> part of `measured.json`, labels by column, and numbers: (name, column, kind, meaning, factor).
_MEASURED: Mapping[str, tuple[str, Sequence[tuple[str, str]], Sequence[tuple[str, str, str, str, str]]]] = {
    "pgherd_service": ("service", (), (
        ("cpu_seconds_total", "cpu", "COUNTER", "CPU time of all processes of the service", "1"),
        ("cpus", "cpus", "GAUGE", "CPUs of the plan", "1"),
        ("memory_working_set_bytes", "memory", "GAUGE", "Memory of all processes of the service", "1"),
        ("memory_limit_bytes", "memory_limit", "GAUGE", "Memory of the plan", "1"),
        ("disk_used_bytes", "disk", "GAUGE", "Databases and WAL", "1"),
        ("disk_limit_bytes", "disk_limit", "GAUGE", "Disk of the plan, or of a smaller file system of its own", "1"),
        ("disk_read_bytes_total", "read", "COUNTER", "Bytes read from the disk", "1"),
        ("disk_written_bytes_total", "written", "COUNTER", "Bytes written to the disk", "1"),
        ("load5", "load", "GAUGE", "Processes that run or wait for the disk, over 5 minutes", "1"),
        ("backup_verified_timestamp_seconds", "verified", "GAUGE", "When a backup was proven last; 0: never", "1"),
        ("backup_sound", "sound", "GAUGE", "Whether the last proof found backups and service sound", "1"),
        ("measured_timestamp_seconds", "at", "GAUGE", "When the host measured this and PgBouncer", "1"),
    )),
    "pgbouncer": ("pooler", (), (
        ("up", "up", "GAUGE", "Whether PgBouncer answered", "1"),
        ("databases", "databases", "GAUGE", "Pools that are configured", "1"),
        ("users", "users", "GAUGE", "Users that are known", "1"),
        ("pools", "pools", "GAUGE", "Pairs of pool and user", "1"),
        ("used_clients", "used_clients", "GAUGE", "Clients that are connected", "1"),
        ("free_clients", "free_clients", "GAUGE", "Places for clients that are kept", "1"),
        ("login_clients", "login_clients", "GAUGE", "Clients that are logging in", "1"),
        ("used_servers", "used_servers", "GAUGE", "Connections to PostgreSQL", "1"),
        ("free_servers", "free_servers", "GAUGE", "Places for connections that are kept", "1"),
        ("cached_dns_names", "dns_names", "GAUGE", "Names in the cache", "1"),
        ("cached_dns_zones", "dns_zones", "GAUGE", "Zones in the cache", "1"),
        ("in_flight_dns_queries", "dns_queries", "GAUGE", "Names that are being asked for", "1"),
    )),
    "pgbouncer_databases": ("databases", (
        ("name", "name"), ("database", "database"), ("force_user", "force_user"), ("pool_mode", "pool_mode"),
    ), (
        ("pool_size", "pool_size", "GAUGE", "Most connections to PostgreSQL", "1"),
        ("reserve_pool", "reserve_pool", "GAUGE", "Connections beyond these when clients wait", "1"),
        ("current_connections", "current_connections", "GAUGE", "Connections to PostgreSQL", "1"),
        ("max_connections", "max_connections", "GAUGE", "Most connections of all users; 0: no limit", "1"),
        ("paused", "paused", "GAUGE", "Whether it is paused", "1"),
        ("disabled", "disabled", "GAUGE", "Whether it is disabled", "1"),
    )),
    "pgbouncer_pools": ("pools", (("database", "database"), ("user", "user")), (
        ("client_active_connections", "cl_active", "GAUGE", "Clients that have a server connection", "1"),
        ("client_waiting_connections", "cl_waiting", "GAUGE", "Clients that wait for one", "1"),
        ("server_active_connections", "sv_active", "GAUGE", "Server connections that a client has", "1"),
        ("server_idle_connections", "sv_idle", "GAUGE", "Server connections that are free", "1"),
        ("server_used_connections", "sv_used", "GAUGE", "Server connections that are checked before use", "1"),
        ("server_testing_connections", "sv_tested", "GAUGE", "Server connections that are being checked", "1"),
        ("server_login_connections", "sv_login", "GAUGE", "Server connections that are logging in", "1"),
        ("client_maxwait_seconds", "maxwait", "GAUGE", "How long the first client in the queue has waited", "1"),
    )),
    "pg_stat_user_tables": ("tables", _TABLE, (
        ("seq_scan", "seq_scan", "COUNTER", "Sequential scans", "1"),
        ("seq_tup_read", "seq_tup_read", "COUNTER", "Rows that these read", "1"),
        ("idx_scan", "idx_scan", "COUNTER", "Scans of its indexes", "1"),
        ("idx_tup_fetch", "idx_tup_fetch", "COUNTER", "Rows that these fetched", "1"),
        ("n_tup_ins", "n_tup_ins", "COUNTER", "Rows inserted", "1"),
        ("n_tup_upd", "n_tup_upd", "COUNTER", "Rows updated", "1"),
        ("n_tup_del", "n_tup_del", "COUNTER", "Rows deleted", "1"),
        ("n_tup_hot_upd", "n_tup_hot_upd", "COUNTER", "Rows updated without a change of indexes", "1"),
        ("n_live_tup", "n_live_tup", "GAUGE", "Live rows, estimated", "1"),
        ("n_dead_tup", "n_dead_tup", "GAUGE", "Dead rows, estimated", "1"),
        ("n_mod_since_analyze", "n_mod_since_analyze", "GAUGE", "Rows changed since the last analyze", "1"),
        ("last_vacuum", "last_vacuum", "GAUGE", "When it was vacuumed by hand; 0: never", "1"),
        ("last_autovacuum", "last_autovacuum", "GAUGE", "When autovacuum vacuumed it; 0: never", "1"),
        ("last_analyze", "last_analyze", "GAUGE", "When it was analyzed by hand; 0: never", "1"),
        ("last_autoanalyze", "last_autoanalyze", "GAUGE", "When autovacuum analyzed it; 0: never", "1"),
        ("vacuum_count", "vacuum_count", "COUNTER", "How often it was vacuumed by hand", "1"),
        ("autovacuum_count", "autovacuum_count", "COUNTER", "How often autovacuum vacuumed it", "1"),
        ("analyze_count", "analyze_count", "COUNTER", "How often it was analyzed by hand", "1"),
        ("autoanalyze_count", "autoanalyze_count", "COUNTER", "How often autovacuum analyzed it", "1"),
    )),
    "pg_statio_user_tables": ("tables", _TABLE, (
        ("heap_blks_read", "heap_blks_read", "COUNTER", "Blocks read from disk", "1"),
        ("heap_blks_hit", "heap_blks_hit", "COUNTER", "Blocks found in shared buffers", "1"),
        ("idx_blks_read", "idx_blks_read", "COUNTER", "Blocks of its indexes read from disk", "1"),
        ("idx_blks_hit", "idx_blks_hit", "COUNTER", "Blocks of its indexes found in shared buffers", "1"),
    )),
    # Two names for the same: pgbouncer_exporter changed them.
    "pgbouncer_stats": ("stats", (("database", "database"),), _STATS),
    "pgbouncer_stats_totals": ("stats", (("database", "database"),), _STATS),
}  # fmt: skip


def render_queries(major: int) -> str:
    """The file of --extend.query-path for a PostgreSQL of this major, as JSON, which is YAML."""
    rendered = {}
    for namespace, (source, columns) in (*_SERVER.items(), _bgwriter(major), *(_WRITES.items() if major >= 17 else ())):
        words = [f"({expression})::float8 AS {name}" for name, expression, _, _ in columns]
        rendered[namespace] = _query(f"SELECT {', '.join(words)} {source}", (), ((n, k, m) for n, _, k, m in columns))
    for namespace, (part, labels, numbers) in _MEASURED.items():
        words = [f"m ->> '{column}' AS \"{name}\"" for name, column in labels]
        absent = "0" if part == "tables" else "NULL"
        words += [
            f"coalesce((m ->> '{column}')::float8, {absent}) * {factor} AS {name}"
            for name, column, _, _, factor in numbers
        ]
        query = f"SELECT {', '.join(words)} FROM {ROLE}.measured('{part}') m"
        rendered[namespace] = _query(query, labels, ((n, k, m) for n, _, k, m, _ in numbers))
    return "# Written by pgherd; changes are overwritten.\n" + json.dumps(rendered, indent=1) + "\n"


def _bgwriter(major: int) -> tuple[str, tuple[str, Sequence[tuple[str, str, str, str]]]]:
    """pg_stat_bgwriter under its older names and, where the exporter cannot ask for it itself, with `_total`."""
    meaning = "As PostgreSQL's pg_stat_bgwriter has it, or had until 16"
    if major < 17:
        columns = [(name, name, "COUNTER", meaning) for name in _MOVED if name != "stats_reset"]
        return "pg_stat_bgwriter", ("FROM pg_stat_bgwriter", columns)
    source = _MOVED_TO.replace("{blocks}", _BLOCKS[min(major, 18)])
    named = [(f"{name}{end}", sql, "COUNTER", meaning) for end in ("", "_total") for name, sql in _MOVED.items()]
    return "pg_stat_bgwriter", (source, named)


def _query(text: str, labels: Sequence[tuple[str, str]], numbers: Iterable[tuple[str, str, str]]) -> dict[str, object]:
    metrics = [{name: {"usage": "LABEL", "description": name}} for name, _ in labels]
    metrics += [{name: {"usage": kind, "description": meaning}} for name, kind, meaning in numbers]
    return {"query": text, "master": False, "metrics": metrics}
