"""Rows 26 to 31: replication, subscriptions, and connections that the server itself makes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.attacks.conftest import SECRET, Fort
from tests.plugins.host import MAJOR, PASSWORD, RunningHost

#: Hosts that are this machine, in every spelling, and others that no database lies behind.
_HERE = (
    "127.1", "127.9.9.9", "0.0.0.0", "0", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.",
    "::", "::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "0:0:0:0:0:0:0:1", "64:ff9b::7f00:1", "fe80::1",
    "localhost.", "x.localhost", "localhost.localdomain", "ip6-localhost", "db",
    "169.254.169.254", "224.0.0.1", "255.255.255.255", "/tmp", "/var/run/postgresql", "@abstract", "", "a.b,127.0.0.1",
    "db.example.com,", "db.example.com 127.0.0.1", "host.0x7f", "1.2.3", "256.1.1.1", "01.2.3.4", "db.example.com/x",
)  # fmt: skip
#: What services of an instance without an address to the outside are advertised on.
_LOOPBACK = ("127.0.0.1", "::1", "localhost", "LOCALHOST")
_THERE = ("192.0.2.7", "10.0.0.1", "2001:db8::7", "fd00::7", "db.example.com", "db-1.example.co.uk", "7.example.com.")


def _walsender(
    fort: Fort, user: str, command: str, kind: str = "database", database: str = "defaultdb"
) -> tuple[int, bytes]:
    password = PASSWORD if user == "avnadmin" else SECRET
    target = f"host=127.0.0.1 port={fort.spec.port} user={user} dbname={database} replication={kind} sslmode=require"
    ended = subprocess.run(
        ["psql", "-XAt", target, "-c", command], capture_output=True, env={"PGPASSWORD": password, "PATH": "/usr/bin"},
        timeout=60, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout


def test_row_26_physical_replication(fort: Fort, attacker: str) -> None:
    for command in ("IDENTIFY_SYSTEM", "BASE_BACKUP", "START_REPLICATION PHYSICAL 0/0"):
        assert _walsender(fort, attacker, command, kind="true") == (2, b"")
    if attacker != "repl":
        for command in ("BASE_BACKUP", "CREATE_REPLICATION_SLOT s PHYSICAL", "START_REPLICATION PHYSICAL 0/0"):
            assert _walsender(fort, attacker, command) == (2, b"")
        fort.refused(attacker, "SELECT pg_create_physical_replication_slot('s')")
    assert fort.superuser("SELECT count(*) FROM pg_replication_slots") == "0"


def test_row_26_a_base_backup_holds_no_secret_of_the_platforms(fort: Fort) -> None:
    """REPLICATION means: may read everything in this service; nothing in PostgreSQL stops `replication=database`."""
    copied = _walsender(fort, "repl", "BASE_BACKUP (CHECKPOINT 'fast')")[1]
    assert len(copied) > 1 << 20
    key = (fort.host.directory(fort.spec) / "config/server.key").read_bytes().splitlines()[1]
    assert key not in copied
    verifiers = fort.superuser(
        "SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_authid WHERE rolpassword <> ''"
    )
    assert verifiers == "avnadmin,plain,repl"


def test_row_27_output_plugins(fort: Fort, attacker: str) -> None:
    plugins = ("evil", "/var/tmp/evil.so", "$libdir/hstore", "../../../../tmp/evil", "pgextwlist")
    fort.refused(attacker, *(f"SELECT pg_create_logical_replication_slot('s', '{plugin}')" for plugin in plugins))
    if attacker != "repl":
        fort.refused(attacker, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        for plugin in ("pgoutput", *plugins):
            assert _walsender(fort, attacker, f'CREATE_REPLICATION_SLOT s LOGICAL "{plugin}"') == (2, b"")
    assert fort.superuser("SELECT count(*) FROM pg_replication_slots") == "0"


def _libraries(pid: int | str) -> set[str]:
    """The shared libraries that a process has loaded."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if ".so" in line}


@pytest.mark.parametrize("major", ["15", "17", "18"])
def test_row_27_a_library_is_not_even_loaded(fort: Fort, major: str) -> None:
    """By SQL and over the replication protocol: none of the host's libraries but the two for it."""
    if major not in fort.host.agent.programs:
        pytest.skip(f"PostgreSQL {major} is not installed")
    if major != fort.spec.version:
        fort = Fort(fort.host, fort.host.running(version=major))
        fort.superuser(f"CREATE ROLE repl LOGIN REPLICATION PASSWORD '{SECRET}'")
    try:
        if fort.superuser("SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'") == "0":
            pytest.skip("CVE-2026-6471: this minor version loads any library for a replication user; fixed in 15.19")
        assert fort.superuser("SHOW output_plugin_libraries") == "pgoutput, test_decoding"
        directory = fort.host.agent.programs[major].library_files
        real = {path.stem: path for path in directory.glob("*.so") if "_and_" not in path.stem}  # no conversions
        assert {"hstore", "auto_explain", "basebackup_to_shell"} <= set(real)
        tried = [*(set(real) - {"pgoutput", "test_decoding"}), "$libdir/hstore", "$libdir/pgoutput", "../lib/hstore"]
        tried += [str(real["hstore"]), str(real["pgoutput"])]
        tried += ["pgoutput, hstore", "pgoutput.so", "PgOutput", "libm.so.6"]
        for kind in ("SELECT pg_create_logical_replication_slot('s', '{}')", 'CREATE_REPLICATION_SLOT s LOGICAL "{}"'):
            session = {"replication": "database"} if kind.startswith("CREATE") else {}
            with fort.connect("repl", **session) as connection:
                before = _libraries(connection.info.backend_pid)
                for plugin in tried:
                    with pytest.raises(psycopg.Error):
                        connection.execute(kind.format(plugin).encode())
                assert _libraries(connection.info.backend_pid) == before
                connection.execute(kind.format("test_decoding").encode())
                assert str(real["test_decoding"]) in _libraries(connection.info.backend_pid) - before
            fort.superuser("SELECT pg_drop_replication_slot('s')")
    finally:
        if major != MAJOR:
            fort.host.change(fort.spec, desired="absent")


def test_row_28_slots_do_not_keep_everything(fort: Fort, attacker: str) -> None:
    fort.refused(attacker, "SET max_slot_wal_keep_size = -1", "ALTER SYSTEM SET max_slot_wal_keep_size = -1")
    kept = "SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
    assert 0 < int(fort.superuser(kept)) <= fort.spec.disk_bytes >> 21


@pytest.fixture
def owned(fort: Fort, attacker: str) -> Iterator[str]:
    """A database that the attacker owns, so that it may call what is for owners."""
    if attacker == "avnadmin":
        yield "defaultdb"
        return
    fort.superuser(f"CREATE DATABASE owned TEMPLATE template0 OWNER {attacker}")
    yield "owned"
    fort.superuser("DROP DATABASE owned WITH (FORCE)")


_SUBSCRIBE = "SELECT pgherd.create_subscription('s', $c${}$c$, 'p', 's')"


def test_row_29_and_31_subscriptions_reach_no_service_of_this_machine(fort: Fort, attacker: str, owned: str) -> None:
    login = f"port={fort.spec.port} dbname=defaultdb user=avnadmin password={PASSWORD}"
    errors = fort.refused(attacker, *(_SUBSCRIBE.format(f"host='{host}' {login}") for host in _HERE), database=owned)
    assert {error.sqlstate for error in errors} <= {"42501", "22023"}
    assert not [error for error in errors if "permission denied" in str(error)], "refused for another reason"
    assert fort.superuser("SELECT count(*) FROM pg_subscription") == "0"


def test_row_29_and_31_loopback_is_for_services_that_are_advertised_there(
    fort: Fort, attacked_host: RunningHost
) -> None:
    """Even there nobody but a password's owner gets in; and no parameter of a tenant's makes another service one."""
    for host in _LOOPBACK:
        here = f"host={host} port={fort.spec.port} dbname=defaultdb"
        for who in ("user=postgres password=x", f"user=plain password={SECRET}x", "user=pgherd_pooler password=x"):
            (error,) = fort.refused("avnadmin", f"SELECT pgherd.create_subscription('s', '{here} {who}', 'p', 's')")
            assert error.sqlstate == "08006", error
    assert fort.superuser("SELECT count(*) FROM pg_subscription") == "0"
    advertised = Fort(attacked_host, attacked_host.running(loopback=False, ip_filter=["127.0.0.1/32"]))
    for what in ("DATABASE defaultdb", "ROLE avnadmin"):
        advertised.tries("avnadmin", f"ALTER {what} SET pgherd.loopback = on")  # whether or not this version lets it
    for host in _LOOPBACK:
        here = f"host={host} port={advertised.spec.port} dbname=defaultdb user=avnadmin password={PASSWORD}"
        call = f"SELECT pgherd.create_subscription('s', '{here}', 'p', 's')"
        errors = advertised.refused("avnadmin", call, f"SET pgherd.loopback = on; {call}")
        assert {error.sqlstate for error in errors} == {"42501"}
    attacked_host.change(advertised.spec, desired="absent")


@pytest.mark.parametrize("host", _THERE)
def test_row_31_other_machines_may_be_named(fort: Fort, host: str) -> None:
    assert fort.superuser(f"SELECT pgherd.require_remote('{host}')", "defaultdb") == ""


#: What a connection may not say beside its host.
_MORE = (
    "hostaddr=127.0.0.1", "service=x", "passfile=/etc/passwd", "sslkey=/etc/passwd",
    "sslcert=/etc/passwd", "sslrootcert=/etc/passwd", "options='-c log_statement=all'",
    "options=-csession_preload_libraries=evil", "host=127.0.0.1", "gssencmode=require",
    "replication=database", "port='1 hostaddr=127.0.0.1'", "target_session_attrs=any", "user=x",
    "dbname='host=/tmp'",
    "dbname='postgres://127.0.0.1/x'", "password='x", "HOST=127.0.0.1",
    "application_name='a\\' hostaddr=127.0.0.1",
)  # fmt: skip


def test_row_29_and_31_options_of_a_subscriptions_connection(fort: Fort, attacker: str, owned: str) -> None:
    start = "host=db.invalid user=avnadmin password=x"
    calls = [_SUBSCRIBE.format(f"{start} {'' if 'dbname' in more else 'dbname=d'} {more}") for more in _MORE]
    errors = fort.refused(attacker, *calls, database=owned)
    assert {error.sqlstate for error in errors} <= {"42501", "22023"}
    assert not [error for error in errors if "permission denied" in str(error)], "refused for another reason"


def test_row_29_what_is_checked_is_what_is_used(fort: Fort) -> None:
    tricky = r"host = db.invalid dbname='a\'b' user=u password='p\\ x\'' application_name=x''"
    assert (
        fort.tries("avnadmin", f"SELECT pgherd.create_subscription('s', $c${tricky}$c$, 'p', 's')")[0].sqlstate
        == "22023"
    )
    good = r"host = db.invalid dbname='a\'b' user=u password='p\\ x\''"
    checked = fort.superuser(f"SELECT pgherd.checked_connection($c${good}$c$)", "defaultdb")
    assert psycopg.conninfo.conninfo_to_dict(checked) == psycopg.conninfo.conninfo_to_dict(good)
    assert fort.superuser(f"SELECT pgherd.checked_connection($c${checked}$c$)", "defaultdb") == checked


def test_row_29_no_subscription_past_the_function(fort: Fort, attacker: str) -> None:
    connection = f"host={fort.host.directory(fort.spec) / 'run'} port={fort.spec.port} user=postgres dbname=postgres"
    fort.refused(
        attacker,
        f"CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p",
        f"CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p WITH (connect = false)",
        f"CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p WITH (password_required = false)",
        f"SELECT pgherd.create_subscription('s', '{connection}', 'p', 's')",
    )
    if attacker != "avnadmin":
        remote = "host=db.invalid dbname=d user=u password=p"
        fort.refused(
            attacker,
            f"SELECT pgherd.create_subscription('s', '{remote}', 'p', 's')",
            "SELECT pgherd.create_publication_for_all_tables('p')",
            "SELECT pgherd.checked_connection('x')",
            "CREATE PUBLICATION p FOR ALL TABLES",
        )
    assert fort.superuser("SELECT count(*) FROM pg_subscription") == "0"


def test_row_29_the_owner_of_a_subscription_cannot_turn_it_to_this_machine(fort: Fort) -> None:
    remote = "host=''db.invalid'' dbname=''d'' user=''u'' password=''p''"
    fort.superuser(f"""
        CREATE SUBSCRIPTION s CONNECTION '{remote}' PUBLICATION p WITH (connect = false, slot_name = NONE);
        ALTER ROLE avnadmin SUPERUSER; ALTER SUBSCRIPTION s OWNER TO avnadmin; ALTER ROLE avnadmin NOSUPERUSER;
    """, "defaultdb")  # fmt: skip
    run = fort.host.directory(fort.spec) / "run"
    fort.refused(
        "avnadmin",
        f"ALTER SUBSCRIPTION s CONNECTION 'host={run} user=postgres dbname=postgres'",
        f"ALTER SUBSCRIPTION s CONNECTION 'host=127.0.0.1 dbname=d user=u password=p port={fort.spec.port}'",
        "ALTER SUBSCRIPTION s OWNER TO postgres",
        f"DO $$ BEGIN ALTER SUBSCRIPTION s CONNECTION 'host={run} user=postgres'; END $$",
    )
    assert fort.superuser("SELECT subconninfo FROM pg_subscription") == remote.replace("''", "'")
    results = fort.tries(
        "avnadmin",
        "ALTER SUBSCRIPTION s CONNECTION 'host=''db2.invalid'' dbname=''d'' user=''u'' password=''p'''",
        "DROP SUBSCRIPTION s",
    )
    assert results == [None, None]


def test_row_30_decoding_of_another_database(fort: Fort) -> None:
    for database in ("postgres", "template1"):
        assert _walsender(fort, "repl", "IDENTIFY_SYSTEM", database=database) == (2, b"")
    assert (
        fort.tries("avnadmin", "CREATE DATABASE private", "REVOKE CONNECT ON DATABASE private FROM PUBLIC")[-1] is None
    )
    try:
        assert _walsender(fort, "repl", "IDENTIFY_SYSTEM", database="private") == (2, b"")
        fort.superuser("SELECT pg_create_logical_replication_slot('s', 'test_decoding')", "private")
        fort.refused("repl", "SELECT * FROM pg_logical_slot_get_changes('s', NULL, NULL)")
    finally:
        fort.superuser("SELECT pg_drop_replication_slot('s') FROM pg_replication_slots")
        fort.superuser("DROP DATABASE private WITH (FORCE)")


@pytest.fixture
def connecting(fort: Fort) -> Iterator[Fort]:
    """With dblink and postgres_fdw, and with servers for everybody whom the admin can let make them."""
    wrappers = "GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw, dblink_fdw TO plain, repl"
    results = fort.tries("avnadmin", "CREATE EXTENSION dblink", "CREATE EXTENSION postgres_fdw", wrappers)
    assert all(result is None or result.sqlstate == "42710" for result in results)
    yield fort
    fort.tries("avnadmin", "DROP EXTENSION dblink CASCADE", "DROP EXTENSION postgres_fdw CASCADE")


def test_row_31_dblink_is_never_the_superuser(connecting: Fort, attacker: str) -> None:
    run, port = connecting.host.directory(connecting.spec) / "run", connecting.spec.port
    targets = (
        f"host={run} port={port} user=postgres dbname=postgres", f"host={run} port={port} user=postgres password=x",
        f"host=127.0.0.1 port={port} user=postgres password=x dbname=postgres", f"host=::1 port={port} user=avnadmin",
        f"host=127.0.0.1 port={port} user=avnadmin dbname=defaultdb", "service=x", "passfile=/etc/passwd",
        f"host={run} port={port} user=avnadmin password={PASSWORD} dbname=defaultdb",
        f"host=127.0.0.1,{run} port={port} user=postgres password=x", "host=/var/run/postgresql user=postgres",
    )  # fmt: skip
    connecting.refused(attacker, *(f"SELECT dblink_connect($c${target}$c$)" for target in targets))
    connecting.refused(attacker, *(f"SELECT dblink_connect_u($c${target}$c$)" for target in targets))
    connecting.refused(attacker, f"SELECT * FROM dblink($c${targets[0]}$c$, 'SELECT 1') AS t(a int)")


#: What a server is told beside host and port, and its user mapping beside nothing: files of the host's, other ways in.
_SERVER_OPTIONS = (
    "", ", hostaddr '127.0.0.1'", ", passfile '/etc/passwd'", ", sslmode 'disable'", ", sslcert '/etc/passwd'",
    ", sslkey '/etc/passwd'", ", options '-c role=postgres'", ", gssencmode 'require'", ", require_auth 'none'",
    ", use_scram_passthrough 'true'", ", service 'x'",
)  # fmt: skip
_USER_OPTIONS = (
    "user 'postgres', password 'x'", "user 'postgres', password ''", "user 'postgres'", "password 'x'",
    "user 'postgres', password_required 'false'", "user 'postgres', password 'x', sslkey '/etc/passwd'",
    "user 'avnadmin', password 'x'", "user 'pgherd_pooler', password 'x'", "user 'pgherd_monitor', password 'x'",
)  # fmt: skip


@pytest.mark.parametrize("wrapper", ["postgres_fdw", "dblink_fdw"])
def test_row_31_a_foreign_server_is_never_the_superuser(connecting: Fort, attacker: str, wrapper: str) -> None:
    run, port = connecting.host.directory(connecting.spec) / "run", connecting.spec.port
    servers = [
        (f"(host '{host}', port '{port}', dbname '{database}'{more})", _USER_OPTIONS[: 2 if more else None])
        for host in (str(run), "127.0.0.1")
        for database, more in [("postgres", ""), *(("defaultdb", more) for more in _SERVER_OPTIONS)]
    ]
    table = "CREATE FOREIGN TABLE loot (a name) SERVER s OPTIONS (schema_name 'pg_catalog', table_name 'pg_authid')"
    fetch = "SELECT a FROM loot"
    if wrapper == "dblink_fdw":
        table, fetch = "SELECT 1", "SELECT * FROM dblink('s', 'SELECT rolname FROM pg_authid') AS t(a name)"
    tried = 0
    with connecting.connect(attacker) as connection:
        for server, users in servers:
            if not _goes(connection, f"CREATE SERVER s FOREIGN DATA WRAPPER {wrapper} OPTIONS {server}"):
                continue  # an option that this wrapper does not know
            assert _goes(connection, table)
            for user in users:
                if _goes(connection, f"CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS ({user})"):
                    assert not _goes(connection, fetch), (server, user)
                    tried += 1
                    for change in ("ADD password_required 'false'", "ADD sslkey '/etc/passwd'"):
                        assert not _goes(connection, f"ALTER USER MAPPING FOR CURRENT_USER SERVER s OPTIONS ({change})")
                    assert _goes(connection, "DROP USER MAPPING FOR CURRENT_USER SERVER s")
            assert _goes(connection, "DROP SERVER s CASCADE")
    assert tried >= 40


def _goes(connection: psycopg.Connection[Any], statement: str) -> bool:
    try:
        connection.execute(statement.encode())
    except psycopg.Error:
        return False
    return True


def test_row_31_what_the_wrappers_are_stays_the_superusers(connecting: Fort, attacker: str) -> None:
    for wrapper in ("postgres_fdw", "dblink_fdw"):
        connecting.refused(
            attacker,
            f"ALTER FOREIGN DATA WRAPPER {wrapper} NO VALIDATOR",
            f"ALTER FOREIGN DATA WRAPPER {wrapper} OPTIONS (ADD password_required 'false')",
            f"ALTER FOREIGN DATA WRAPPER {wrapper} OWNER TO {attacker}",
            f"DROP FOREIGN DATA WRAPPER {wrapper} CASCADE",
            f"CREATE FOREIGN DATA WRAPPER mine HANDLER {wrapper.replace('dblink_fdw', 'postgres_fdw')}_handler",
        )
    assert connecting.superuser("SELECT count(*) FROM pg_foreign_server", "defaultdb") == "0"
    if attacker != "avnadmin":
        granted = connecting.tries(attacker, "GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO PUBLIC")
        public = "SELECT count(*) FROM pg_foreign_data_wrapper, aclexplode(fdwacl) WHERE grantee = 0"
        assert connecting.superuser(public, "defaultdb") == "0", granted
