"""Extensions that belong to the superuser are of use to the owner of the database, who created them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgherd.drivers import postgres
from pgherd.drivers.postgres import Cluster
from pgherd.spec import NodeSpec
from tests.plugins.host import PASSWORD, RunningHost, until

_GUEST = "not-so-secret-1"
#: Without a superuser: whose privileges on members of extensions are more than the list of pgherd--1.sql.
_GIVEN = """
    SELECT e.extname, coalesce(relname, proname, fdwname), string_agg(privilege_type, ',' ORDER BY privilege_type)
    FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
    LEFT JOIN pg_foreign_data_wrapper w ON d.classid = 'pg_foreign_data_wrapper'::regclass AND w.oid = d.objid
    CROSS JOIN LATERAL aclexplode(coalesce(relacl, proacl, fdwacl)) a
    WHERE d.deptype = 'e' AND e.extname <> 'pgherd' AND a.grantee = 'pg_database_owner'::regrole
    GROUP BY e.extname, d.classid, d.objid, relname, proname, fdwname
"""


@pytest.fixture(scope="module", params=["15", "17", "18"])
def service(host: RunningHost, request: pytest.FixtureRequest) -> Iterator[NodeSpec]:
    """A service that lets its neighbours in, whose worker of pg_partman runs each second."""
    if request.param not in host.agent.programs:
        pytest.skip(f"PostgreSQL {request.param} is not installed")
    settings = {"pg_partman_bgw.interval": 1}
    spec = host.running(version=request.param, settings=settings, ip_filter=["127.0.0.1/32"])
    with host.connect(spec) as admin:
        admin.execute(f"CREATE ROLE guest LOGIN PASSWORD '{_GUEST}'".encode())
    yield spec
    host.change(spec, desired="absent")


def _created(host: RunningHost, spec: NodeSpec, *names: str, **more: Any) -> psycopg.Connection[Any]:
    connection = host.connect(spec, **more)
    for name in names:
        connection.execute(f"CREATE EXTENSION IF NOT EXISTS {name}".encode())
    return connection


def _superuser(host: RunningHost, spec: NodeSpec, script: str, database: str = "defaultdb") -> str:
    cluster = Cluster(host.agent.programs[spec.version], host.directory(spec), host.account(spec), spec.port)
    return postgres.psql(cluster, script, database=database).strip()


def test_postgres_fdw_reads_and_writes_another_service(host: RunningHost, service: NodeSpec) -> None:
    other = host.running(ip_filter=["127.0.0.1/32"])
    with host.connect(other) as there:
        there.execute("CREATE TABLE far (a int)")
        there.execute("INSERT INTO far VALUES (7)")
    with _created(host, service, "postgres_fdw") as admin:
        for port in (other.port, service.port):
            options = f"OPTIONS (host '127.0.0.1', port '{port}', dbname 'defaultdb', sslmode 'require')"
            admin.execute(f"CREATE SERVER s{port} FOREIGN DATA WRAPPER postgres_fdw {options}".encode())
            login = f"OPTIONS (user 'avnadmin', password '{PASSWORD}')"
            admin.execute(f"CREATE USER MAPPING FOR avnadmin SERVER s{port} {login}".encode())
        admin.execute(f"IMPORT FOREIGN SCHEMA public LIMIT TO (far) FROM SERVER s{other.port} INTO public".encode())
        admin.execute("INSERT INTO far VALUES (8)")
        assert admin.execute("SELECT a FROM far ORDER BY a").fetchall() == [(7,), (8,)]
        admin.execute("CREATE TABLE near AS SELECT 9 AS a")
        admin.execute(
            f"CREATE FOREIGN TABLE itself (a int) SERVER s{service.port} OPTIONS (table_name 'near')".encode()
        )
        assert admin.execute("SELECT a FROM itself").fetchall() == [(9,)]
        admin.execute("DROP EXTENSION postgres_fdw CASCADE")
        admin.execute("DROP TABLE near")
    host.change(other, desired="absent")


@pytest.mark.parametrize(("extension", "wrapper"), [("postgres_fdw", "postgres_fdw"), ("dblink", "dblink_fdw")])
def test_whom_the_owner_lets_may_make_servers_too(
    host: RunningHost, service: NodeSpec, extension: str, wrapper: str
) -> None:
    make = f"CREATE SERVER mine FOREIGN DATA WRAPPER {wrapper}".encode()
    with _created(host, service, extension) as admin, host.connect(service, user="guest", password=_GUEST) as guest:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            guest.execute(make)
        admin.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER {wrapper} TO guest".encode())
        guest.execute(make)
        admin.execute(f"REVOKE USAGE ON FOREIGN DATA WRAPPER {wrapper} FROM guest CASCADE".encode())
        for change in (f"ALTER FOREIGN DATA WRAPPER {wrapper} OPTIONS (x 'y')", f"DROP FOREIGN DATA WRAPPER {wrapper}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute(change.encode())
        admin.execute(f"DROP EXTENSION {extension} CASCADE".encode())


def test_pgstattuple_and_pg_buffercache(host: RunningHost, service: NodeSpec) -> None:
    asked = ["SELECT tuple_count FROM pgstattuple('counted')", "SELECT pg_relpages('counted')"]
    asked += ["SELECT index_size FROM pgstatindex('counted_pkey')", "SELECT count(*) > 0 FROM pg_buffercache"]
    asked += ["SELECT scanned_percent FROM pgstattuple_approx('counted')"]
    if int(service.version) >= 16:
        asked += [f"SELECT * FROM pg_buffercache_{what}()" for what in ("summary", "usage_counts")]
    with (
        _created(host, service, "pgstattuple", "pg_buffercache") as admin,
        host.connect(service, user="guest", password=_GUEST) as guest,
    ):
        admin.execute("CREATE TABLE counted (a int PRIMARY KEY)")
        for question in asked:
            assert admin.execute(question.encode()).fetchone() is not None
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                guest.execute(question.encode())
        admin.execute("DROP TABLE counted")
        admin.execute("DROP EXTENSION pgstattuple")
        admin.execute("DROP EXTENSION pg_buffercache")


def test_pg_partman_works_as_the_admin_and_so_does_its_worker(host: RunningHost, service: NodeSpec) -> None:
    if "pg_partman_bgw" not in host.agent.programs[service.version].libraries:
        pytest.skip(f"this host has no postgresql-{service.version}-partman")
    with host.connect(service) as admin:
        admin.execute("CREATE SCHEMA partman")
        admin.execute("CREATE EXTENSION pg_partman SCHEMA partman")
        admin.execute("CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at)")
        (release,) = admin.execute("SELECT extversion FROM pg_extension WHERE extname = 'pg_partman'").fetchone()
        native = "'native', 'daily'" if release.startswith("4.") else "'1 day'"
        admin.execute(f"SELECT partman.create_parent('public.log', 'at', {native})".encode())
        partitions = "SELECT max(partition_tablename) FROM partman.show_partitions('public.log')"
        (newest,) = admin.execute(partitions.encode()).fetchone()
        admin.execute(f"DROP TABLE {newest}".encode())
        admin.execute("UPDATE partman.part_config SET infinite_time_partitions = true")

        def made_again() -> bool:
            return bool(admin.execute("SELECT to_regclass(%s) IS NOT NULL", [newest]).fetchone()[0])

        until(made_again, 20, lambda: f"{newest} is not there")
        owner = admin.execute("SELECT relowner::regrole::text FROM pg_class WHERE relname = %s", [newest]).fetchone()
        assert owner == ("avnadmin",)
        kept = _superuser(host, service, "SELECT extconfig IS NOT NULL FROM pg_extension WHERE extname = 'pg_partman'")
        assert kept == "t"
        admin.execute("DROP TABLE log")
        admin.execute("DROP EXTENSION pg_partman")
        admin.execute("DROP SCHEMA partman CASCADE")


def test_no_update_as_the_superuser_comes_by_what_the_owner_wrote(host: RunningHost, service: NodeSpec) -> None:
    if "pg_partman_bgw" not in host.agent.programs[service.version].libraries:
        pytest.skip(f"this host has no postgresql-{service.version}-partman")
    with _created(host, service, "pg_partman", "hstore") as admin:
        admin.execute("ALTER EXTENSION hstore UPDATE")
        _superuser(host, service, "UPDATE pg_extension SET extversion = '1.0.0' WHERE extname = 'pg_partman'")
        hidden = "DO $$ BEGIN EXECUTE 'ALTER EXTENSION pg_partman ' || 'UPDATE'; END $$"
        for change in ("ALTER EXTENSION pg_partman UPDATE", "ALTER EXTENSION hstore UPDATE", hidden):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="older version of pg_partman"):
                admin.execute(change.encode())
        admin.execute("DROP EXTENSION pg_partman")
        admin.execute("ALTER EXTENSION hstore UPDATE")


def test_only_what_is_on_the_list_is_given(host: RunningHost, service: NodeSpec) -> None:
    every = "SELECT string_agg(name, ' ') FROM pg_available_extensions() WHERE name = ANY (string_to_array(replace("
    every += "current_setting('extwlist.extensions'), '\"', ''), ',')) AND name NOT IN ('plpgsql', 'timescaledb')"
    with host.connect(service) as admin:
        admin.execute("CREATE DATABASE full_of_them")
        (names,) = admin.execute(every.encode()).fetchone()
    with host.connect(service, dbname="full_of_them") as admin:
        for name in names.split():
            admin.execute(f'CREATE EXTENSION IF NOT EXISTS "{name}" CASCADE'.encode())
    given = {tuple(line.split("|")) for line in _superuser(host, service, _GIVEN, "full_of_them").splitlines()}
    wrappers = {("dblink", "dblink_fdw", "USAGE"), ("postgres_fdw", "postgres_fdw", "USAGE")}
    tables = {row for row in given if row[0] == "pg_partman"}
    assert {what for _, name, what in tables if name != "table_privs"} <= {"DELETE,INSERT,SELECT,UPDATE"}
    others = given - wrappers - tables
    assert wrappers <= given and {name for name, _, _ in others} == {"pgstattuple", "pg_buffercache"}
    assert {what for _, _, what in others} == {"EXECUTE", "SELECT"}
    optional = "SELECT count(*) FROM pg_proc, aclexplode(proacl) a WHERE is_grantable AND a.grantee <> proowner"
    assert _superuser(host, service, optional, "full_of_them") == "0"
    _superuser(host, service, "DROP DATABASE full_of_them WITH (FORCE)", "postgres")


def test_a_dump_of_the_owners_goes_into_another_database_without_an_error(host: RunningHost, service: NodeSpec) -> None:
    """Without pg_partman's tables being the owner's to read, pg_dump failed; an option granted anew would fail too."""
    names = ["postgres_fdw", "dblink", "pgstattuple", "pg_buffercache"]
    if "pg_partman_bgw" in host.agent.programs[service.version].libraries:
        names.append("pg_partman")
    with _created(host, service, *names) as admin:
        admin.execute("CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'db.example.com')")
        admin.execute("CREATE DATABASE again")
    programs = host.agent.programs[service.version].bin
    target = f"host=127.0.0.1 port={service.port} user=avnadmin sslmode=require dbname="
    run: dict[str, Any] = {"capture_output": True, "env": os.environ | {"PGPASSWORD": PASSWORD}, "timeout": 60}
    dump = subprocess.run([f"{programs}/pg_dump", f"{target}defaultdb"], check=True, **run)
    restore = [f"{programs}/psql", "-Xq", "-v", "ON_ERROR_STOP=1", f"{target}again"]
    restored = subprocess.run(restore, input=dump.stdout, check=False, **run)
    assert restored.returncode == 0, restored.stderr
    with host.connect(service, dbname="again") as admin:
        assert admin.execute("SELECT srvname FROM pg_foreign_server").fetchall() == [("s",)]
    with host.connect(service) as admin:
        admin.execute("DROP DATABASE again WITH (FORCE)")
        for name in names:
            admin.execute(f"DROP EXTENSION {name} CASCADE".encode())
