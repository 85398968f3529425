"""What the platform puts into databases: pgaudit with its lines in the service's log, and TimescaleDB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgherd.drivers import postgres
from pgherd.drivers.postgres_settings import ALLOWED
from pgherd.spec import NodeSpec, Pool
from tests.plugins.host import RunningHost, until

EXTENSIONS = "SELECT extname FROM pg_extension ORDER BY 1"
EVERYTHING: dict[str, Any] = dict.fromkeys(("pgaudit.log_parameter", "pgaudit.log_relation", "pgaudit.log_rows"), True)
EVERYTHING["pgaudit.log"] = "all"


class Audited:
    """A node whose statements are looked for in its log."""

    def __init__(self, host: RunningHost) -> None:
        self.host = host
        self.spec = host.running(pools=[Pool("main", "defaultdb", "transaction", 2)])

    def change(self, **changes: Any) -> None:
        self.spec = self.host.change(self.spec, **changes)
        self.host.until_in_force(self.spec)

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        return self.host.connect(self.spec, **more)

    def lines(self, *statements: str, **more: Any) -> list[str]:
        """The audit lines that statements of the admin leave, as they stand after the mark of the log level."""
        with self.connect(**more) as connection:
            return self.lines_of(connection, *statements)

    def lines_of(self, connection: psycopg.Connection[Any], *statements: str) -> list[str]:
        before = len(self._log())
        for statement in statements:
            connection.execute(statement.encode(), prepare=False)
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT 'the end' FROM no_such_table")

        def written() -> list[str]:
            new = self._log()[before:]
            return new if any("no_such_table" in line for line in new) else []

        return [line.partition("] ")[2].partition("] ")[2] for line in until(written) if "AUDIT: " in line]

    def _log(self) -> list[str]:
        path = self.host.home / "log" / f"node-{self.spec.node_id}" / "current"
        return path.read_text(errors="replace").splitlines()

    def databases_with_pgaudit(self) -> set[str]:
        """Those of the service's databases and templates that have the extension."""
        names = self.host.sql(self.spec, "SELECT datname FROM pg_database WHERE datallowconn").split()
        has = "SELECT count(*) FROM pg_extension WHERE extname = 'pgaudit'"
        program = self.host.agent.programs[self.spec.version]
        cluster = postgres.Cluster(
            program, self.host.directory(self.spec), self.host.account(self.spec), self.spec.port
        )
        return {name for name in names if postgres.psql(cluster, has, database=name).strip() == "1"}


@pytest.fixture(scope="module")
def audited(host: RunningHost) -> Audited:
    node = Audited(host)
    with node.connect() as connection:
        connection.execute("CREATE DATABASE before")
        connection.execute("CREATE TABLE t (a int)")
    return node


def test_switched_on_it_is_everywhere_and_counts_in_open_sessions(audited: Audited) -> None:
    with audited.connect() as connection:
        assert audited.lines_of(connection, "SELECT 1", "CREATE TABLE early ()") == []
        audited.change(audit=True, settings=EVERYTHING)
        lines = audited.lines_of(connection, "SELECT 2")
    assert lines == ["LOG:  AUDIT: SESSION,1,1,READ,SELECT,,,SELECT 2,<none>,1"]
    assert audited.databases_with_pgaudit() == {"defaultdb", "before", "template1"}
    assert audited.host.link.statuses[audited.spec.node_id].pending_restart == []


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("SELECT a FROM t", "READ,SELECT,TABLE,public.t,SELECT a FROM t,<none>,0"),
        ("INSERT INTO t VALUES (1)", "WRITE,INSERT,TABLE,public.t,INSERT INTO t VALUES (1),<none>,1"),
        ("CREATE TABLE audited ()", "DDL,CREATE TABLE,TABLE,public.audited,CREATE TABLE audited (),<none>,"),
        ("CREATE ROLE someone", "ROLE,CREATE ROLE,,,CREATE ROLE someone,<none>,"),
        ("DO 'BEGIN END'", "FUNCTION,DO,,,DO 'BEGIN END',<none>,"),
        ("DISCARD PLANS", "MISC,DISCARD PLANS,,,DISCARD PLANS,<none>,"),
        ("SET statement_timeout = 0", "MISC,SET,,,SET statement_timeout = 0,<none>,"),
    ],
)
def test_each_class_of_statements_leaves_its_line(audited: Audited, statement: str, line: str) -> None:
    assert [found.partition("SESSION,1,1,")[2].rstrip("0123456789") for found in audited.lines(statement)] == [
        line.rstrip("0123456789")
    ]


def test_databases_that_come_later_have_it_too(audited: Audited) -> None:
    with audited.connect() as connection:
        connection.execute("CREATE DATABASE from_one")
        connection.execute("CREATE DATABASE from_zero TEMPLATE template0")
    wanted = {"defaultdb", "before", "template1", "from_one", "from_zero"}
    until(lambda: audited.databases_with_pgaudit() == wanted, 30)
    assert "TABLE,public.there" in audited.lines("CREATE TABLE there ()", dbname="from_zero")[0]


def test_settings_are_in_force_and_tenants_cannot_change_them(audited: Audited) -> None:
    more: dict[str, Any] = {"pgaudit.log": "ddl", "pgaudit.log_client": True, "pgaudit.log_level": "warning"}
    more["pgaudit.log_statement"] = False
    audited.change(settings=more)
    assert audited.lines("SELECT 1", "CREATE TABLE u ()") == [
        "WARNING:  AUDIT: SESSION,1,1,DDL,CREATE TABLE,TABLE,public.u,<not logged>,<not logged>"
    ]
    for attack in ("SET pgaudit.log = 'none'", "ALTER ROLE avnadmin SET pgaudit.log = 'none'", "RESET pgaudit.log"):
        with audited.connect() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(attack.encode())
    audited.change(settings=more | {"pgaudit.role": "auditor", "pgaudit.log": "none"})
    grant = ("CREATE ROLE auditor", "CREATE TABLE secret (a int)", "GRANT SELECT ON secret TO auditor")
    assert audited.lines(*grant, "SELECT * FROM t", "SELECT * FROM secret") == [
        "WARNING:  AUDIT: OBJECT,1,1,READ,SELECT,TABLE,public.secret,<not logged>,<not logged>"
    ]


def test_the_platform_leaves_no_lines(audited: Audited) -> None:
    audited.change(settings=EVERYTHING)
    with audited.connect() as connection:
        assert audited.lines_of(connection) == []
        with audited.connect(port=audited.spec.port + 1, dbname="main") as pooled:
            pooled.execute("SELECT 'pooled'")
        seen = audited.lines_of(connection, "SELECT 'mine'")
        audited.change(ip_filter=["192.0.2.0/24"])
        assert audited.lines_of(connection) == []
    assert [line for line in seen if "lookup" in line] == [] and "'mine'" in seen[-1]


def test_switched_off_it_is_nowhere(audited: Audited) -> None:
    audited.change(audit=False, settings={})
    assert audited.databases_with_pgaudit() == set()
    assert audited.lines("SELECT 1", "DROP TABLE u") == []
    with audited.connect() as connection:
        connection.execute("CREATE EXTENSION pgaudit")  # a user's own is not the platform's business
    audited.change(ip_filter=[])
    assert audited.databases_with_pgaudit() == {"defaultdb"}


def test_the_host_says_what_its_pgaudit_knows(host: RunningHost) -> None:
    assert host.link.facts is not None
    of_the_contract = {name for name in ALLOWED if name.startswith("pgaudit.")}
    for major, known in host.link.facts.audit.items():
        lacking = {"pgaudit.log_max_string_length", "pgaudit.log_nested_statements"}
        assert of_the_contract - set(known) - lacking <= {"pgaudit.log_parameter_max_size"}, major


@pytest.fixture(scope="module")
def plain(host: RunningHost) -> Iterator[NodeSpec]:
    yield host.running(version="18")


def test_timescaledb_comes_with_one_restart_and_once(host: RunningHost, plain: NodeSpec) -> None:
    with host.connect(plain) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE EXTENSION timescaledb")
    workers = {"timescaledb.max_background_workers": 9}
    spec = host.change(plain, timescale=True, settings=workers)
    assert "shared_preload_libraries" in host.until_in_force(spec).pending_restart
    spec = host.change(spec, restart=1)
    assert host.until_in_force(spec).pending_restart == []
    with host.connect(spec) as connection:
        assert ("timescaledb",) in connection.execute(EXTENSIONS).fetchall()
        shown = "SELECT current_setting('timescaledb.license'), current_setting('timescaledb.max_background_workers')"
        assert connection.execute(shown).fetchone() == ("apache", "9")
        connection.execute("CREATE TABLE m (at timestamptz NOT NULL, v float)")
        connection.execute("SELECT create_hypertable('m', 'at')")
        connection.execute("INSERT INTO m SELECT now() - i * interval '7 days', i FROM generate_series(1, 9) i")
        chunks = connection.execute("SELECT count(*) FROM show_chunks('m')").fetchone()
        assert chunks is not None and chunks[0] >= 9
        connection.execute("DROP EXTENSION timescaledb CASCADE")
        connection.execute("CREATE DATABASE other")
    spec = host.change(spec)
    host.until_in_force(spec)
    with host.connect(spec) as connection:
        assert ("timescaledb",) not in connection.execute(EXTENSIONS).fetchall(), "whoever drops it means it"
    with host.connect(spec, dbname="other") as connection:
        connection.execute("CREATE EXTENSION timescaledb")
        with pytest.raises(psycopg.Error):
            connection.execute("SET timescaledb.license = 'timescale'")


def test_what_timescaledb_refuses_when_it_is_loaded_is_not_in_force(host: RunningHost, plain: NodeSpec) -> None:
    spec = host.running(version=plain.version)
    spec = host.change(spec, timescale=True, settings={"timescaledb.max_background_workers": 1001})
    host.until_in_force(spec)  # its library is not there yet
    spec = host.change(spec, restart=1)
    status = host.until(spec, lambda s: s.refused == spec.generation)
    assert "timescaledb.max_background_workers: PostgreSQL refuses the value; it takes 0 to 1000" in status.reason


def test_the_worker_of_pg_partman_is_the_admin(host: RunningHost, plain: NodeSpec) -> None:
    """By default it would be the superuser. What it does: test_agent_extensions.py."""
    spec = host.running(version=plain.version, settings={"pg_partman_bgw.interval": 3601})
    names = "{shared_preload_libraries,pg_partman_bgw.role,pg_partman_bgw.dbname,pg_partman_bgw.interval}"
    query = f"SELECT current_setting(name) FROM unnest('{names}'::text[]) name"
    assert host.sql(spec, query).split() == [
        "pg_stat_statements,pgaudit,pg_partman_bgw", "avnadmin", "defaultdb", "3601"
    ]  # fmt: skip
