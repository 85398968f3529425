"""What an agent tells of a real node: logs when asked, samples by itself, and an exporter that comes back."""

from __future__ import annotations

import itertools
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import requests
import urllib3

from pgherd import sealing
from pgherd.agent import metering, telemetry
from pgherd.drivers import exporter, pgbouncer, statistics
from pgherd.settings import Settings
from pgherd.spec import NodeSpec, Pool, Tls
from pgherd.telemetry import MEASURES, LogPosition, LogQuestion, LogUnit
from tests.plugins import host as plugin
from tests.plugins.host import PASSWORD, RunningHost, rooted, until

pytestmark = pytest.mark.skipif(exporter.program("") is None, reason="needs postgres_exporter: install/debian.sh")
_pooler = pgbouncer.program(Settings().pgbouncer)
POOLS = [Pool("main", "defaultdb", "transaction", 5)] if _pooler is not None and _pooler.serves else []
_batches = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def often() -> Iterator[None]:
    """Samples come with every observation."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("EVERY", "SOON", "_POOLER_EVERY", "_TABLES_EVERY", "_TABLES_AT_FIRST"):
            patch.setattr(metering, name, 0.5)
        patch.setattr(telemetry, "_SEND_EVERY", 0.5)
        yield


class Told:
    """A node with an exporter and, where there is PgBouncer, a pool."""

    def __init__(self, host: RunningHost, version: str = plugin.MAJOR) -> None:
        self.host = host
        self.spec: NodeSpec = host.running(
            max_connections=40, monitor=host.monitor(), pools=POOLS, memory_bytes=2 << 30, cpus=2, version=version
        )
        until(lambda: "pg_up 1" in self.scrape(), 30, self.scrape)

    def scrape(self, password: str = PASSWORD) -> str:
        """The metrics, or the status of the refusal; empty when nobody answers."""
        urllib3.disable_warnings()
        try:
            url = f"https://127.0.0.1:{self.spec.port + 3}/metrics"
            answer = requests.get(url, auth=("prometheus", password), verify=False, timeout=20)  # noqa: S501
        except requests.RequestException:
            return ""
        return answer.text if answer.status_code == 200 else str(answer.status_code)

    def ask(self, **more: Any) -> dict[str, LogUnit]:
        given: dict[str, Any] = {"limit": 200, "ascending": False} | more
        question = LogQuestion(str(next(_batches)), self.spec.node_id, **given)
        self.host.link.asked.append(question)
        self.host.link.wake()
        until(lambda: question.batch in self.host.link.answers, 10)
        return {unit.unit: unit for unit in self.host.link.answers[question.batch]}

    def last(self) -> dict[str, float | None]:
        """The newest sample that is not there yet."""
        count = len(self.host.link.sampled)
        own = lambda: [s for s in self.host.link.sampled[count:] if s.node_id == self.spec.node_id]  # noqa: E731
        until(lambda: len(own()) > 1, 20)
        return dict(zip(MEASURES, own()[-1].measured, strict=True))

    @property
    def pid(self) -> int:
        return int((self.host.home / "s6" / f"export-{self.spec.node_id}" / "holder").read_text())


@pytest.fixture(scope="module")
def told(host: RunningHost, often: None) -> Told:
    return Told(host)


def test_a_killed_exporter_comes_back_and_hurts_nobody(told: Told) -> None:
    pid, postmaster = told.pid, told.host.postmaster(told.spec)
    os.kill(pid, signal.SIGKILL)
    until(lambda: told.pid != pid and "pg_up 1" in told.scrape(), 20)
    os.kill(postmaster, signal.SIGKILL)
    until(lambda: told.host.postmaster(told.spec) != postmaster and "pg_up 1" in told.scrape(), 30)
    assert told.scrape("wrong") == "401" and told.scrape("") == "401"


@rooted
def test_it_is_the_services_own_process_without_a_secret_in_sight(told: Told) -> None:
    account = told.host.account(told.spec)
    assert os.stat(f"/proc/{told.pid}").st_uid == account.uid
    for name in ("cmdline", "environ"):
        shown = Path(f"/proc/{told.pid}/{name}").read_bytes().decode()
        assert PASSWORD not in shown and "$2b$" not in shown
    config = told.host.directory(told.spec) / "config"
    for name in exporter.FILES:
        status = (config / name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, account.gid, 0o640)


def test_it_logs_in_as_a_role_that_only_looks(told: Told) -> None:
    def psql(script: str, database: str = "postgres") -> subprocess.CompletedProcess[str]:
        directory, account = told.host.directory(told.spec), told.host.account(told.spec)
        argv = [str(told.host.agent.programs["15"].bin / "psql"), "-XqAtw", "-h", str(directory / "run")]
        argv += ["-p", str(told.spec.port), "-U", exporter.ROLE, "-d", database, "-c", script]
        who = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", **who)  # type: ignore[call-overload,no-any-return]

    assert psql("SELECT session_user || current_user").stdout.strip() == "pgherd_monitor" * 2
    for script in (
        "SELECT rolpassword FROM pg_authid", "SELECT pg_read_file('/etc/passwd')", "COPY (SELECT 1) TO PROGRAM 'id'",
        "SET ROLE postgres", "SET SESSION AUTHORIZATION postgres", "CREATE TABLE public.t ()", "ALTER SYSTEM RESET ALL",
        "CREATE SCHEMA x", "CREATE ROLE x", "SELECT lo_import('/etc/passwd')",
        "BEGIN READ WRITE; CREATE TABLE pgherd_monitor.t ()",
    ):  # fmt: skip
        assert psql(script).returncode != 0, script
    assert psql("SELECT 1", "defaultdb").returncode != 0
    assert exporter.ROLE not in {role.name for role in told.host.link.statuses[told.spec.node_id].users}
    for role in (exporter.ROLE, "postgres"):
        with pytest.raises(psycopg.OperationalError):
            told.host.connect(told.spec, user=role, password="").close()


def test_what_a_tenant_makes_of_the_role_is_taken_back(told: Told) -> None:
    """Up to 15 an admin with CREATEROLE reaches it."""
    with told.host.connect(told.spec) as connection:
        connection.execute("GRANT pgherd_monitor TO avnadmin")
        connection.execute("ALTER ROLE pgherd_monitor PASSWORD 'mine-now-then' NOLOGIN CONNECTION LIMIT 0")
        connection.execute("ALTER ROLE pgherd_monitor SET search_path = public")
        connection.execute("SET ROLE pgherd_monitor")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT rolpassword FROM pg_authid")
    is_back = f"SELECT {exporter.is_prepared()}"
    until(lambda: told.host.sql(told.spec, is_back).strip() == "t", 20)
    with pytest.raises(psycopg.OperationalError):
        told.host.connect(told.spec, user=exporter.ROLE, password="mine-now-then").close()
    until(lambda: "pg_up 1" in told.scrape(), 20)


def test_samples_say_what_is_going_on(told: Told) -> None:
    with told.host.connect(told.spec) as busy, told.host.connect(told.spec) as idle:
        idle.execute("BEGIN")
        idle.execute("SELECT 1")
        busy.execute("CREATE TABLE work AS SELECT generate_series(1, 200000) AS n")
        sample = told.last()
        busy.execute("DO $$ BEGIN FOR n IN 1..60 LOOP PERFORM count(*) FROM work; COMMIT; END LOOP; END $$")
        later = told.last()
        busy.execute("DROP TABLE work")
    assert sample["connections"] == 2 and sample["connections_idle_in_transaction"] == 1
    assert sample["mem_usage"] and 0.1 < sample["mem_usage"] < 50
    assert sample["disk_usage"] and sample["disk_bytes"] and sample["disk_bytes"] > 1 << 20
    assert later["oldest_transaction"] is not None and later["oldest_transaction"] > 0.5
    assert all(value is None or value >= 0 for value in later.values())
    if POOLS:
        assert later["pool_clients"] is not None
    assert told.host.sql(told.spec, "SELECT 1").strip() == "1"


@rooted
def test_bytes_to_and_from_the_ports_are_counted(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgherd.drivers.traffic._FRESH", 0.2)
    place, count = MEASURES.index("net_send"), len(told.host.link.sampled)

    def rates() -> list[float]:
        found = [s.measured[place] for s in told.host.link.sampled[count:] if s.node_id == told.spec.node_id]
        return [rate for rate in found if rate is not None]

    if not told.host.agent.telemetry._meters.counters._able:
        pytest.skip("this machine has no nft")
    until(rates, 20)
    with told.host.connect(told.spec) as connection:
        for _ in range(5):
            connection.execute("SELECT repeat('x', 2000000)").fetchall()
        until(lambda: max(rates()) > 1_000_000, 20, lambda: str(rates()))


def test_a_cluster_that_lies_about_its_counters_runs_all_the_same(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    for lie in ("'{}'::json", "'\"1e999\"'::json", "no_such_function()"):
        monkeypatch.setattr("pgherd.drivers.statistics.asking", lambda monitor, lie=lie: f"(SELECT {lie})")
        count = len(told.host.link.history)
        until(lambda count=count: len(told.host.link.history) > count + 1, 20)
        assert told.host.link.statuses[told.spec.node_id].state == "running"


def test_both_servers_lines_come_and_no_others(told: Told) -> None:
    other = told.host.running()
    with told.host.connect(other) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM somebody_elses")
    with told.host.connect(told.spec) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM our_own")
    units = until(lambda: (u := told.ask()) and "our_own" in u["postgresql"].entries[1].message and u, 10)
    text = "".join(entry.message for unit in units.values() for entry in unit.entries)
    assert "somebody_elses" not in text and "ready to accept connections" in text
    assert str(told.host.home) not in text
    if POOLS:
        assert any("process up" in entry.message for entry in units["pgbouncer"].entries)
    told.host.link.wish(msgspec.structs.replace(other, generation=2, desired="absent"))


def test_a_name_with_line_breaks_forges_no_line(told: Told) -> None:
    forged = "x\nFATAL:  all is lost\n\x1b[2J"
    before = told.ask(limit=1)["postgresql"].position
    with pytest.raises(psycopg.OperationalError):
        told.host.connect(told.spec, user=forged).close()
    entries = until(lambda: told.ask(ascending=True, positions={"postgresql": before})["postgresql"].entries, 10)
    assert not [e for e in entries if e.message.startswith(("FATAL:  all is lost", "\x1b"))]
    assert all("\x1b" not in e.message for e in entries)
    assert any("\n\tFATAL:  all is lost" in e.message for e in entries)


def test_a_question_about_an_unknown_node_is_answered_with_nothing(told: Told) -> None:
    for node in ("../agent", "nobody", "agent"):
        question = LogQuestion(str(next(_batches)), node, 5, True, {"postgresql": LogPosition("", 0)})
        told.host.link.asked.append(question)
        told.host.link.wake()
        assert until(lambda q=question: q.batch in told.host.link.answers, 10)
        assert told.host.link.answers[question.batch] == []


#: What the well-known dashboards ask for (Grafana 9628, 455 and those for pgbouncer_exporter), on every major.
ASKED = [
    "pg_up", "pg_static", "pg_postmaster_start_time_seconds", "pg_replication_lag", "pg_replication_lag_seconds",
    "pg_replication_is_replica", "pg_database_size_bytes", "pg_locks_count", "pg_stat_activity_count",
    "pg_stat_activity_max_tx_duration", "pg_stat_archiver_archived_count", "process_resident_memory_bytes",
    "pg_settings_max_connections", "pg_settings_shared_buffers_bytes", "pg_stat_database_xact_commit",
    "pg_stat_database_xact_rollback", "pg_stat_database_tup_fetched", "pg_stat_database_tup_returned",
    "pg_stat_database_tup_inserted", "pg_stat_database_tup_updated", "pg_stat_database_tup_deleted",
    "pg_stat_database_blks_hit", "pg_stat_database_blks_read", "pg_stat_database_conflicts",
    "pg_stat_database_deadlocks", "pg_stat_database_temp_bytes", "pg_stat_database_numbackends",
    "pg_stat_bgwriter_checkpoints_timed_total", "pg_stat_bgwriter_checkpoints_req_total",
    "pg_stat_bgwriter_checkpoint_write_time_total", "pg_stat_bgwriter_checkpoint_sync_time_total",
    "pg_stat_bgwriter_buffers_checkpoint_total", "pg_stat_bgwriter_buffers_clean_total",
    "pg_stat_bgwriter_maxwritten_clean_total", "pg_stat_bgwriter_buffers_backend_total",
    "pg_stat_bgwriter_buffers_backend_fsync_total", "pg_stat_bgwriter_buffers_alloc_total",
    "pg_stat_bgwriter_stats_reset_total", "pg_stat_user_tables_seq_scan", "pg_stat_user_tables_idx_scan",
    "pg_stat_user_tables_n_tup_ins", "pg_stat_user_tables_n_live_tup", "pg_stat_user_tables_n_dead_tup",
    "pg_stat_user_tables_last_autovacuum", "pg_statio_user_tables_heap_blks_hit",
    "pg_statio_user_tables_heap_blks_read", "pg_statio_user_tables_idx_blks_hit",
    "pg_stat_bgwriter_checkpoints_timed", "pg_stat_bgwriter_checkpoints_req", "pg_stat_bgwriter_buffers_checkpoint",
    "pg_stat_bgwriter_buffers_clean", "pg_stat_bgwriter_buffers_backend", "pg_stat_bgwriter_buffers_backend_fsync",
    "pg_stat_bgwriter_buffers_alloc",
]  # fmt: skip
ASKED_OF_17 = [
    "num_timed_total", "num_requested_total", "restartpoints_timed_total", "restartpoints_req_total",
    "restartpoints_done_total", "write_time_total", "sync_time_total", "buffers_written_total", "stats_reset_total",
]  # fmt: skip
ASKED_OF_POOLS = [
    "pgbouncer_up", "pgbouncer_databases", "pgbouncer_users", "pgbouncer_pools", "pgbouncer_free_clients",
    "pgbouncer_used_clients", "pgbouncer_login_clients", "pgbouncer_free_servers", "pgbouncer_used_servers",
    "pgbouncer_cached_dns_names", "pgbouncer_databases_pool_size", "pgbouncer_databases_current_connections",
    "pgbouncer_databases_max_connections", "pgbouncer_databases_paused", "pgbouncer_databases_disabled",
    "pgbouncer_databases_reserve_pool", "pgbouncer_pools_client_active_connections",
    "pgbouncer_pools_client_maxwait_seconds", "pgbouncer_stats_queries_pooled_total",
    "pgbouncer_stats_totals_queries_pooled_total", "pgbouncer_stats_totals_client_wait_seconds_total",
]  # fmt: skip


@pytest.mark.parametrize("major", dict.fromkeys((plugin.MAJOR, "18")))
def test_dashboards_find_what_they_ask_for(told: Told, major: str) -> None:
    """With values of this node: names alone could stand on numbers that never move."""
    if major not in told.host.agent.programs:
        pytest.skip(f"sh install/postgresql.sh {major}")
    told = told if major == plugin.MAJOR else Told(told.host, major)
    with told.host.connect(told.spec) as connection:
        connection.execute('CREATE TABLE IF NOT EXISTS "it\'s" (n int PRIMARY KEY)')
        connection.execute('INSERT INTO "it\'s" SELECT generate_series(1, 70) ON CONFLICT DO NOTHING')
    if POOLS:
        with told.host.connect(told.spec, port=told.spec.port + 1, dbname="main") as connection:
            connection.execute("SELECT 1")
    told.host.sql(told.spec, "CHECKPOINT")
    table, mine = 'pg_stat_user_tables_n_tup_ins{datname="defaultdb",relname="it\'s",schemaname="public"', {}

    def found() -> dict[str, float]:
        mine.clear()
        mine.update(values(told.scrape()))
        sure = [_value(mine, table), _value(mine, "pg_stat_bgwriter_checkpoints_req_total")]
        sure += [_value(mine, 'pgbouncer_stats_totals_sql_transactions_pooled_total{database="main"')] * len(POOLS)
        return mine if all(sure) else {}

    until(found, 30, lambda: str({name: _value(mine, name) for name in (table, *ASKED, *ASKED_OF_POOLS)}))
    asked = ASKED + ASKED_OF_POOLS * len(POOLS)
    asked += [f"pg_stat_checkpointer_{name}" for name in ASKED_OF_17 if int(major) >= 17]
    assert [name for name in asked if _value(mine, name) is None] == []
    assert _value(mine, "pg_exporter_last_scrape_error") == 0
    assert _value(mine, table) == 70 and _value(mine, table.replace("tup_ins", "live_tup")) == 70
    started = float(told.host.sql(told.spec, "SELECT extract(epoch FROM pg_postmaster_start_time())"))
    assert abs((_value(mine, "pg_postmaster_start_time_seconds") or 0) - started) < 1
    assert (_value(mine, "pg_stat_bgwriter_buffers_checkpoint_total") or 0) > 0
    assert (_value(mine, "pg_stat_bgwriter_buffers_alloc_total") or 0) > 0
    for name in ("checkpoints_req", "buffers_checkpoint"):
        assert _value(mine, f"pg_stat_bgwriter_{name}") == _value(mine, f"pg_stat_bgwriter_{name}_total"), name
    assert _value(mine, "pg_replication_is_replica") == _value(mine, "pg_replication_lag") == 0
    if int(major) >= 17:
        for old, new in (("checkpoints_req", "num_requested"), ("buffers_checkpoint", "buffers_written")):
            assert _value(mine, f"pg_stat_bgwriter_{old}_total") == _value(mine, f"pg_stat_checkpointer_{new}_total")
        assert (_value(mine, "pg_stat_bgwriter_buffers_backend_total") or 0) > 0
    if POOLS:
        assert _value(mine, "pgbouncer_databases_pool_size") == 5 and _value(mine, "pgbouncer_databases") == 3
        assert 'name="main"' in "".join(name for name in mine if name.startswith("pgbouncer_databases_pool_size"))
    for name in mine:
        assert not name.startswith("pgbouncer_") or 'database="pgbouncer"' not in name, name
    text = told.scrape()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    errors = [line for line in checked.stderr.splitlines() if line.startswith(("pgherd_", "pgbouncer_"))]
    assert "error while linting" not in checked.stderr and not errors, checked.stderr
    if told.spec.version != plugin.MAJOR:
        told.host.until_in_force(told.host.change(told.spec, desired="absent"), 60)


def values(text: str) -> dict[str, float]:
    """Series, with their labels, and their values."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def _value(series: dict[str, float], begins: str) -> float | None:
    """The value of the first series of this name, or with this name and these first labels."""
    ends = "," if "{" in begins else "{"
    return next((v for s, v in series.items() if s == begins or s.startswith((begins + ends, begins + "}"))), None)


def test_of_many_tables_the_largest_are_told_at_once(told: Told) -> None:
    with told.host.connect(told.spec) as connection:
        connection.execute("CREATE SCHEMA many")
        make = "CREATE TABLE many.t%s AS SELECT generate_series(1, %s) AS n"
        for n in range(statistics.MOST_TABLES + 5):
            connection.execute((make % (n, 1000 if n > 4 else 1)).encode())
        connection.execute("ANALYZE")
    begins = 'pg_stat_user_tables_n_live_tup{datname="defaultdb",relname="t'
    until(lambda: len([s for s in values(told.scrape()) if s.startswith(begins)]) >= statistics.MOST_TABLES, 20)
    names = [s.split('"')[3] for s in values(told.scrape()) if s.startswith("pg_stat_user_tables_n_live_tup{")]
    assert len(names) == statistics.MOST_TABLES and not {"t0", "t1", "t2", "t3", "t4"} & set(names)
    with told.host.connect(told.spec) as connection:
        connection.execute("DROP SCHEMA many CASCADE")


def test_a_renewed_certificate_and_another_password_count_without_a_restart(told: Told) -> None:
    pid, before = told.pid, told.spec.tls.certificate
    for name in ("test.crt", "test.key"):
        (told.host.home / name).unlink()
    certificate, key = plugin._certificate(told.host.home)
    sealed = sealing.seal(sealing.public_key(told.host.agent.host.private_key), key)
    told.spec = told.host.change(told.spec, monitor=told.host.monitor("another-one"), tls=Tls(certificate, sealed))
    told.host.until_in_force(told.spec)
    until(lambda: "pg_up 1" in told.scrape("another-one"), 20)
    assert told.scrape() == "401" and told.pid == pid
    served = ssl.get_server_certificate(("127.0.0.1", told.spec.port + 3))
    assert served.split() == certificate.split() != before.split()


def test_it_ends_with_its_node(told: Told) -> None:
    stopped = told.host.change(told.spec, desired="stopped")
    told.host.until_in_force(stopped, 60)
    assert told.scrape("another-one") == ""
    told.spec = told.host.change(stopped, desired="running")
    told.host.until_in_force(told.spec)
    until(lambda: "pg_up 1" in told.scrape("another-one"), 30)
    told.host.until_in_force(told.host.change(told.spec, desired="absent"), 60)
    assert told.scrape("another-one") == "" and f"export-{told.spec.node_id}" not in told.host.agent.supervisor.names()
    assert plugin.until(lambda: not (told.host.home / "log" / f"export-{told.spec.node_id}").exists(), 5)
