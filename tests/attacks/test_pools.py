"""Rows 42 and 46 to 50: what PgBouncer lets in, and what one of its clients can get of another."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd import sealing
from pgherd.agent import agent as agent_module
from pgherd.drivers import pgbouncer
from pgherd.spec import Pool, Task
from tests.attacks.conftest import ATTACKERS, SECRET, Fort
from tests.plugins.host import PASSWORD, RunningHost, until, verifier

pytestmark = pytest.mark.skipif(pgbouncer.program("") is None, reason="needs PgBouncer: install/pgbouncer.sh")

_POOLS = [
    Pool("tx", "defaultdb", "transaction", 4), Pool("sess", "defaultdb", "session", 4),
    Pool("work", "work", "transaction", 4), Pool("own", "defaultdb", "session", 2, "avnadmin"),
]  # fmt: skip
_PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"
_ids = itertools.count(1)


class Pools:
    """A service with the attackers, two databases and pools of every kind."""

    def __init__(self, host: RunningHost) -> None:
        self.fort = Fort(host, host.running(max_connections=60, pools=_POOLS, memory_bytes=4 << 30))
        self.fort.tries("avnadmin", "CREATE DATABASE work", f"CREATE ROLE plain LOGIN PASSWORD '{SECRET}'")
        self.fort.superuser(f"CREATE ROLE repl LOGIN REPLICATION PASSWORD '{SECRET}'")
        self.fort.tries("avnadmin", "GRANT USAGE, CREATE ON SCHEMA public TO plain, repl")

    def connect(self, pool: str, user: str = "plain", **more: Any) -> psycopg.Connection[Any]:
        return self.fort.connect(user, **({"dbname": pool, "port": self.fort.spec.port + 1} | more))

    def refused(self, pool: str, user: str = "plain", **more: Any) -> str:
        with pytest.raises(psycopg.OperationalError) as caught:
            self.connect(pool, user, **more).close()
        return str(caught.value)

    def change(self, **changes: Any) -> None:
        self.fort.spec = self.fort.host.change(self.fort.spec, **changes)
        self.fort.host.until_in_force(self.fort.spec)

    def task(self, kind: Any, name: str, password: str = "") -> None:
        """A change through the platform, to its end."""
        host = self.fort.host
        sealed = sealing.seal(sealing.public_key(host.agent.host.private_key), verifier(password)) if password else ""
        self.change(task=Task(f"a{next(_ids)}", kind, name, verifier=sealed, owner="avnadmin"))
        result = host.link.statuses[self.fort.spec.node_id].task
        assert result is not None and result.state == "done", result


@pytest.fixture(scope="module")
def pools(attacked_host: RunningHost) -> Iterator[Pools]:
    """The agent looks at it every second."""
    usual, agent_module._LOOK_EVERY = agent_module._LOOK_EVERY, 1.0
    made = Pools(attacked_host)
    powers = made.fort.powers()
    yield made
    assert made.fort.powers() == powers
    attacked_host.change(made.fort.spec, desired="absent")
    agent_module._LOOK_EVERY = usual


@pytest.mark.parametrize("pool", ["pgbouncer", "postgres", "template0", "template1", "pgherd_auth", "*", "nowhere", ""])
def test_row_42_no_name_leads_to_the_console_or_a_closed_database(pools: Pools, pool: str) -> None:
    for user in (*ATTACKERS, "postgres", "pgbouncer", "pgherd_pooler"):
        for password in (PASSWORD, SECRET, ""):
            pools.refused(pool, user, password=password)


@pytest.mark.parametrize("name", ["pgbouncer", "postgres", "template1", "pgherd_auth", "*", "x\nadmin_users=plain"])
def test_row_42_a_host_takes_no_such_pool_whoever_sends_it(pools: Pools, name: str) -> None:
    host, before = pools.fort.host, pools.fort.spec
    wished = host.change(before, pools=[*_POOLS, Pool(name, "defaultdb", "session", 1)])
    status = host.until(wished, lambda seen: bool(seen.reason))
    assert (status.step, "not acceptable" in status.reason) == ("pools", True)
    pools.connect("tx").close()
    pools.fort.spec = wished
    pools.change(pools=_POOLS)


def test_row_46_expired_and_disabled_users(pools: Pools) -> None:
    """CVE-2025-2291: a look-up that forgets VALID UNTIL lets expired passwords in."""
    for change in ("VALID UNTIL '2001-01-01'", "NOLOGIN", "PASSWORD NULL", "CONNECTION LIMIT 0"):
        assert pools.fort.tries("avnadmin", f"ALTER ROLE plain {change}") == [None]
        with pytest.raises(psycopg.OperationalError), pools.connect("sess") as connection:
            connection.execute("SELECT 1")
        back = f"ALTER ROLE plain LOGIN PASSWORD '{SECRET}' VALID UNTIL 'infinity' CONNECTION LIMIT -1"
        assert pools.fort.tries("avnadmin", back) == [None]
    until(lambda: _answers(pools, "sess"), 10)
    md5 = "SET password_encryption = md5; CREATE ROLE weak LOGIN PASSWORD 'x'"
    assert pools.fort.tries("avnadmin", md5) == [None]
    pools.refused("sess", "weak", password="x")
    assert pools.fort.tries("avnadmin", "DROP ROLE weak") == [None]


def _answers(pools: Pools, pool: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError), pools.connect(pool) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)
    return False


@pytest.mark.parametrize("ignored", ["extra_float_digits", "extra_float_digits,search_path"])
def test_row_46_a_search_path_before_authentication_leads_nowhere(pools: Pools, ignored: str) -> None:
    """CVE-2025-12819: the look-up ran with the search_path of whoever knocked."""
    pools.change(pooler={"ignore_startup_parameters": ignored})
    trap = "CREATE OR REPLACE FUNCTION {}.lookup(text) RETURNS TABLE (name text, verifier text) LANGUAGE sql AS"
    trap += " $$ SELECT 'postgres', 'x' $$"
    for database in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError):
            pools.fort.tries("avnadmin", "CREATE SCHEMA trap", trap.format("trap"), database=database)
    for parameter, value in (("search_path", "trap"), ("options", "-c search_path=trap"), ("session_user", "postgres")):
        for user in ("plain", "postgres", "nobody"):
            assert _startup(pools, user, {parameter: value}) in ("E", "R10")
    pools.connect("tx").close()
    assert pools.fort.superuser("SELECT count(*) FROM pg_db_role_setting") == "0"


def _startup(pools: Pools, user: str, more: dict[str, str]) -> str:
    """The server's first word to a startup packet: `E`, an error, or `R` with the number of the login it asks for."""
    pairs = {"user": user, "database": "tx"} | more
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in pairs.items()) + b"\0"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", pools.fort.spec.port + 1), timeout=10) as raw:
        raw.sendall(struct.pack("!ii", 8, 80877103))
        assert raw.recv(1) == b"S"
        with context.wrap_socket(raw) as secured:
            secured.sendall(struct.pack("!ii", 8 + len(body), 196608) + body)
            answer = secured.recv(4096)
    kind = answer[:1].decode()
    return f"R{struct.unpack('!i', answer[5:9])[0]}" if kind == "R" else kind


@pytest.mark.parametrize("pool", ["tx", "sess"])
def test_row_47_a_deleted_user_is_out_and_does_not_come_back_as_the_next_of_its_name(pools: Pools, pool: str) -> None:
    pools.task("create-user", "leaver", "first-of-that-name")
    with pools.connect(pool, "leaver", password="first-of-that-name") as session:
        assert session.execute("SELECT session_user").fetchone() == ("leaver",)
        pools.task("drop-user", "leaver")
        pools.task("create-user", "leaver", "second-of-that-name")
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    pools.refused(pool, "leaver", password="first-of-that-name")
    until(lambda: _logs_in(pools, pool, "leaver", "second-of-that-name"), 10)
    pools.task("drop-user", "leaver")


def test_row_47_a_user_that_sql_disables_or_drops_is_out_with_the_next_look(pools: Pools) -> None:
    for ending in ("ALTER ROLE leaver NOLOGIN", "DROP ROLE leaver"):
        pools.fort.tries("avnadmin", "DROP ROLE IF EXISTS leaver", f"CREATE ROLE leaver LOGIN PASSWORD '{SECRET}'")
        host, spec = pools.fort.host, pools.fort.spec
        host.until(spec, lambda status: "leaver" in {role.name for role in status.users})
        with pools.connect("tx", "leaver") as session:
            session.execute("SELECT 1")
            assert pools.fort.tries("avnadmin", ending) == [None]
            pools.refused("tx", "leaver")
            host.until(spec, lambda status: "leaver" not in {role.name for role in status.users})
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
    pools.fort.tries("avnadmin", "DROP ROLE IF EXISTS leaver")


def _logs_in(pools: Pools, pool: str, user: str, password: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError), pools.connect(pool, user, password=password) as connection:
        return connection.execute("SELECT session_user").fetchone() == (user,)
    return False


def test_row_48_a_reset_counts_at_once_under_load_and_cuts_nobody(pools: Pools, tmp_path: Path) -> None:
    """200 clients with prepared statements through a pool of 10, while another user's password changes twice."""
    pools.change(pools=[*_POOLS, Pool("busy", "defaultdb", "transaction", 10, "avnadmin")])
    port = pools.fort.spec.port
    login = {"PGHOST": "127.0.0.1", "PGUSER": "avnadmin", "PGPASSWORD": PASSWORD, "PGSSLMODE": "require"}
    environment = os.environ | login
    making = [_PGBENCH, "-i", "-q", "-p", str(port), "defaultdb"]
    subprocess.run(making, env=environment, check=True, capture_output=True)
    # A thread a client: pgbench prepares with a blocking call, see tests/bench/pools.py. It is ended after a while.
    argv = [_PGBENCH, "-n", "-M", "prepared", "-P", "1", "-c", "200", "-j", "200", "-T", "300"]
    said = tmp_path / "said"
    with open(said, "w") as file:
        bench = subprocess.Popen([*argv, "-p", str(port + 1), "busy"], env=environment, stdout=file, stderr=file)
    took: list[float] = []
    try:
        until(lambda: _seconds(said) > 1, 60)
        pools.task("create-user", "changing", "password-0")
        with pools.connect("tx", "plain") as other:
            for number in (1, 2):
                assert _logs_in(pools, "tx", "changing", f"password-{number - 1}")
                begun = time.monotonic()
                pools.task("set-password", "changing", f"password-{number}")
                assert "authentication failed" in pools.refused("tx", "changing", password=f"password-{number - 1}")
                assert _logs_in(pools, "tx", "changing", f"password-{number}")
                took.append(time.monotonic() - begun)
            assert other.execute("SELECT 1").fetchone() == (1,)
        seen = _seconds(said)
        until(lambda: _seconds(said) > max(4, seen + 1), 60)
        assert bench.poll() is None
    finally:
        bench.kill()
        bench.wait()
    assert max(took) < 2, took
    words = said.read_text()
    assert not re.search("error|abort|fatal|[1-9][0-9]* failed", words, re.IGNORECASE), words[-500:]
    pools.task("drop-user", "changing")
    pools.change(pools=_POOLS)


def _seconds(said: Path) -> int:
    """How many seconds pgbench has worked in: those with transactions."""
    return len(re.findall(r"progress: [\d.]+ s, [\d.]*[1-9][\d.]* tps", said.read_text()))


_MARKS = (
    "SET statement_timeout = '77s'", "CREATE TEMPORARY TABLE mine AS SELECT 'secret' AS a",
    "PREPARE mine AS SELECT 'secret'", "SELECT pg_advisory_lock(pg_backend_pid())", "LISTEN mine",
)  # fmt: skip
_LOOK = """
    SELECT current_setting('statement_timeout'), to_regclass('mine') IS NOT NULL,
      (SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'),
      (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
      (SELECT count(*) FROM pg_listening_channels())
"""
_CLEAN = ("0", False, 0, 0, 0)


def test_row_49_nothing_passes_between_users_or_databases(pools: Pools) -> None:
    """PgBouncer keeps servers apart by user and by pool, and so by database, in every mode."""
    seen: dict[tuple[str, str], set[int]] = {}
    for pool, user in itertools.product(("tx", "sess", "work"), ATTACKERS):
        with pools.connect(pool, user) as connection:
            connection.prepare_threshold = None
            assert connection.execute(_LOOK).fetchone() == _CLEAN, (pool, user)
            for mark in _MARKS:
                connection.execute(mark.encode())
            row = connection.execute("SELECT pg_backend_pid(), session_user::text, current_database()::text").fetchone()
            assert row is not None and row[1:] == (user, "work" if pool == "work" else "defaultdb")
            seen.setdefault((pool, user), set()).add(row[0])
    every = [pid for pids in seen.values() for pid in pids]
    assert len(every) == len(set(every)) == 9
    pools.fort.superuser("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'plain'")


def test_row_49_a_session_pool_hands_on_a_clean_session(pools: Pools) -> None:
    pids = set()
    for _ in range(3):
        with pools.connect("own", "avnadmin") as connection:
            connection.prepare_threshold = None
            assert connection.execute(_LOOK).fetchone() == _CLEAN
            pids.add(connection.execute("SELECT pg_backend_pid()").fetchone())
            for mark in (*_MARKS, "SET search_path = trap"):
                connection.execute(mark.encode())
    assert len(pids) == 1, "the session was used again"


def test_row_49_a_transaction_pool_can_be_told_to_hand_on_a_clean_session(pools: Pools) -> None:
    """By nature it hands on what was SET to the same user's next transaction: docs/access.md. The setting ends that."""
    pools.change(pooler={"server_reset_query_always": True})
    with pools.connect("tx", "repl") as connection:
        connection.prepare_threshold = None
        for mark in _MARKS:
            connection.execute(mark.encode())
            assert connection.execute(_LOOK).fetchone() == _CLEAN
    pools.change(pooler={})


@pytest.mark.parametrize("pooled", [False, True])
def test_row_50_guessing_is_refused_and_locks_nobody_out(pools: Pools, pooled: bool) -> None:
    guesses, refusals = 40, []
    where = {"dbname": "tx", "port": pools.fort.spec.port + 1} if pooled else {}

    def guess(number: int) -> None:
        for turn in range(guesses // 4):
            with pytest.raises(psycopg.OperationalError) as caught:
                pools.fort.connect("plain", password=f"guess-{number}-{turn}", **where)
            refusals.append(str(caught.value))

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(4)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    pools.fort.connect("plain", **where).close()
    for thread in threads:
        thread.join(60)
    pools.fort.connect("plain", **where).close()
    print(f"{guesses / (time.monotonic() - started):.0f} guesses a second by four at once, pooled: {pooled}")
    assert len(refusals) == guesses and all("authentication failed" in text for text in refusals)
