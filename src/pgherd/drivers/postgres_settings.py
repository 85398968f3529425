"""postgresql.conf: what the platform sets, what the plan sizes and what the tenant chose. Pure.

`PLATFORM` (in `spec`) is the version of what `_platform` sets: raise it with every change there.
"""

from __future__ import annotations

import math
from pathlib import Path

from pgherd.errors import HostFault, Unsupported
from pgherd.spec import SUPERUSERS, NodeSpec, Setting

#: What a tenant may set: what the contract's `json-schema-pg` leads to, with the first major that knows it.
ALLOWED: dict[str, int] = (
    dict.fromkeys(
        """
    autovacuum_analyze_scale_factor autovacuum_analyze_threshold autovacuum_freeze_max_age autovacuum_max_workers
    autovacuum_naptime autovacuum_vacuum_cost_delay autovacuum_vacuum_cost_limit autovacuum_vacuum_scale_factor
    autovacuum_vacuum_threshold bgwriter_delay bgwriter_flush_after bgwriter_lru_maxpages bgwriter_lru_multiplier
    deadlock_timeout idle_in_transaction_session_timeout jit log_autovacuum_min_duration log_error_verbosity
    log_line_prefix log_min_duration_statement log_temp_files max_files_per_process max_locks_per_transaction
    max_logical_replication_workers max_parallel_workers max_parallel_workers_per_gather
    max_pred_locks_per_transaction max_prepared_transactions max_replication_slots max_slot_wal_keep_size
    max_stack_depth max_standby_archive_delay max_standby_streaming_delay max_sync_workers_per_subscription
    max_wal_senders max_worker_processes password_encryption pg_partman_bgw.interval pg_partman_bgw.role
    pg_stat_monitor.pgsm_enable_query_plan pg_stat_monitor.pgsm_max_buckets pg_stat_statements.track
    temp_file_limit timezone track_activity_query_size track_commit_timestamp track_functions track_io_timing
    wal_sender_timeout wal_writer_delay
    """.split(),  # noqa: SIM905 - a block of words reads better
        0,
    )
    | {
        "default_toast_compression": 14,
        "io_combine_limit": 17,
        "io_max_combine_limit": 18,
        "io_max_concurrency": 18,
        "io_method": 18,
        "io_workers": 18,
    }
    | dict.fromkeys(
        """
    pgaudit.log pgaudit.log_catalog pgaudit.log_client pgaudit.log_level pgaudit.log_max_string_length
    pgaudit.log_nested_statements pgaudit.log_parameter pgaudit.log_parameter_max_size pgaudit.log_relation
    pgaudit.log_rows pgaudit.log_statement pgaudit.log_statement_once pgaudit.role timescaledb.max_background_workers
    """.split(),  # noqa: SIM905
        0,
    )
)

#: Libraries that nodes preload as far as they are installed: every node the first, some the others.
ALWAYS = ("pg_stat_statements", "pgaudit")
TIMESCALE, PARTMAN = "timescaledb", "pg_partman_bgw"
_WORKERS = 16  # of TimescaleDB, as the contract says
_WORKER_SLOTS = 20  # the contract's most

#: A parameter of our own that names the configuration in force; it changes when a reload has been carried out.
MARKER = "pgherd.config"
#: On where services are advertised on a loopback address: a subscription may name it (pgherd.require_remote).
_LOOPBACK = "pgherd.loopback"


def quote(value: Setting) -> str:
    """A value as postgresql.conf takes it. Raises HostFault for what cannot be written there."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and not math.isfinite(value):
        raise HostFault("A setting's value is not a finite number.")
    text = str(value)
    if "\0" in text or len(text) > 4096:
        raise HostFault("A setting's value holds a zero byte or is too long.")
    escapes = str.maketrans({"\\": "\\\\", "'": "''", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"})
    return f"'{text.translate(escapes)}'"


def render(
    spec: NodeSpec,
    *,
    run: Path,
    config: Path,
    libraries: list[str],
    locale: str,
    session_libraries: list[str] | None = None,
    extensions: str = "",
    archive_command: str = "",
    archive_timeout: int = 0,
) -> str:
    """postgresql.conf without the marker.

    `libraries`, `session_libraries`: what is installed of what nodes and sessions load; `extensions`: what tenants may
    create.
    `archive_command`: empty for a service without a repository, whose segments are thrown away; `archive_timeout` in
    seconds.

    Raises HostFault for a setting that is not in `ALLOWED`; one that the node's major does not know is left out.
    """
    major = int(spec.version)
    if unknown := sorted(set(spec.settings) - set(ALLOWED)):
        raise HostFault("A setting is not one that a service may have.", detail=", ".join(unknown)[:200])
    tenant = {name: value for name, value in spec.settings.items() if major >= ALLOWED[name]}
    values = _platform(spec, major) | _sizes(spec) | _extras(spec, libraries) | {
        "archive_command": archive_command or "/bin/true",
        "archive_timeout": archive_timeout if archive_command else 0,
        "unix_socket_directories": str(run),
        "ssl_cert_file": str(config / "server.crt"),
        "ssl_key_file": str(config / "server.key"),
        "extwlist.extensions": extensions,
        "session_preload_libraries": ",".join(session_libraries or []),
        "shared_preload_libraries": ",".join(preloaded(spec, libraries)),
        # The guard against a full disk is switched without this file (`postgres_guard`).
        "include_if_exists": "guard.conf",
        "lc_monetary": locale,
        "lc_numeric": locale,
        "lc_time": locale,
        _LOOPBACK: spec.loopback,
    }  # fmt: skip
    lines = ["# Written by pgherd; changes are overwritten."]
    lines += [f"{name} = {quote(value)}" for name, value in sorted((values | tenant).items())]
    return "\n".join(lines) + "\n"


def preloaded(spec: NodeSpec, installed: list[str]) -> list[str]:
    """What a node preloads of the installed libraries. Raises Unsupported when its TimescaleDB is not there."""
    if spec.timescale and TIMESCALE not in installed:
        raise Unsupported(f"TimescaleDB for PostgreSQL {spec.version} is not installed on this host.")
    wanted = [*ALWAYS, *([TIMESCALE] if spec.timescale else []), *([PARTMAN] if _uses_partman(spec) else [])]
    return [name for name in wanted if name in installed]


def _uses_partman(spec: NodeSpec) -> bool:
    return any(name.startswith(f"{PARTMAN}.") for name in spec.settings)


def _extras(spec: NodeSpec, installed: list[str]) -> dict[str, Setting]:
    """What the platform sets for majors and libraries that only some nodes have."""
    values: dict[str, Setting] = {}
    if int(spec.version) >= 18:
        # Room for as many as may be wished: the number of workers then changes with a reload.
        values["autovacuum_worker_slots"] = _WORKER_SLOTS
    if spec.timescale:
        workers = int(spec.settings.get("timescaledb.max_background_workers", _WORKERS))
        values |= {
            "max_worker_processes": 8 + min(workers, 128),  # within the processes that a node may have
            # Other editions forbid to offer the rest of it as a service.
            "timescaledb.license": "apache",
            "timescaledb.max_background_workers": _WORKERS,
            "timescaledb.telemetry_level": "off",
        }
    if _uses_partman(spec) and PARTMAN in installed:
        # By itself it would work as the superuser, who then runs what tenants wrote.
        values |= {f"{PARTMAN}.dbname": "defaultdb", f"{PARTMAN}.role": spec.admin.name}
    return values


def _platform(spec: NodeSpec, major: int) -> dict[str, Setting]:
    disk = spec.disk_bytes >> 20
    values: dict[str, Setting] = {
        "archive_mode": True,  # always: it could not be turned on later without a restart
        "cluster_name": spec.node_name[:63],
        "datestyle": "iso, mdy",
        "default_text_search_config": "pg_catalog.english",
        "lc_messages": "C",
        "listen_addresses": "*",
        "log_destination": "stderr",
        "log_line_prefix": "%m [%p] %q[user=%u,db=%d,app=%a] ",
        "log_timezone": "UTC",
        "logging_collector": False,
        "max_replication_slots": 20,
        # Without bounds an abandoned slot or a burst of writes fills the disk.
        "max_slot_wal_keep_size": f"{max(1024, disk // 4)}MB",
        "max_wal_size": f"{min(4096, max(256, disk // 16))}MB",
        "max_wal_senders": 20,
        "password_encryption": "scram-sha-256",
        "port": spec.port,
        "ssl": True,
        "ssl_ciphers": "HIGH:!aNULL",
        "ssl_min_protocol_version": "TLSv1.2",
        "superuser_reserved_connections": SUPERUSERS,
        "tcp_keepalives_count": 4,
        "tcp_keepalives_idle": 120,
        "tcp_keepalives_interval": 15,
        "timezone": "UTC",
        "wal_level": "logical",
    }
    if major >= 14:
        values["default_toast_compression"] = "lz4"
    if major >= 17:
        values["allow_alter_system"] = False
    return values


def _sizes(spec: NodeSpec) -> dict[str, Setting]:
    return {
        "effective_cache_size": f"{spec.memory.effective_cache_size}MB",
        "maintenance_work_mem": f"{spec.memory.maintenance_work_mem}MB",
        "max_connections": spec.max_connections,
        "shared_buffers": f"{spec.memory.shared_buffers}MB",
        "work_mem": f"{spec.memory.work_mem}MB",
    }
