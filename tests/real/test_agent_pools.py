"""Pools: a real PgBouncer beside a real PostgreSQL, changed and killed, seen from clients over TLS."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from typing import Any

import psycopg
import pytest

from pgherd import sealing, unprivileged
from pgherd.drivers import pgbouncer
from pgherd.settings import Settings
from pgherd.spec import NodeSpec, Pool, Task
from tests.plugins.host import MAJOR, RunningHost, until, verifier

_found = pgbouncer.program(Settings().pgbouncer)
pytestmark = pytest.mark.skipif(
    _found is None or not _found.serves, reason="needs PgBouncer 1.21: install/pgbouncer.sh"
)
_ids = itertools.count(1)
MAIN = Pool("main", "defaultdb", "transaction", 10)


class Pooled:
    """A node with PgBouncer."""

    def __init__(self, host: RunningHost, *pools: Pool, **changes: Any) -> None:
        self.host = host
        self.spec = host.running(max_connections=40, pools=list(pools), **changes)

    def change(self, **changes: Any) -> NodeSpec:
        self.spec = self.host.change(self.spec, **changes)
        self.host.until_in_force(self.spec)
        return self.spec

    def connect(self, pool: str = "main", **more: Any) -> psycopg.Connection[Any]:
        return self.host.connect(self.spec, **({"port": self.spec.port + 1, "dbname": pool} | more))

    def refused(self, pool: str = "main", **more: Any) -> str:
        with pytest.raises(psycopg.OperationalError) as refusal:
            self.connect(pool, **more).close()
        return str(refusal.value)

    def user(self, name: str, password: str, kind: Any = "create-user") -> None:
        sealed = sealing.seal(sealing.public_key(self.host.agent.host.private_key), verifier(password))
        self.change(task=Task(f"p{next(_ids)}", kind, name, verifier=sealed))
        result = self.host.link.statuses[self.spec.node_id].task
        assert result is not None and result.state == "done", result

    def psql(self, user: str, script: str, database: str = "postgres") -> unprivileged.Answer:
        """As the service's OS user over the node's own socket."""
        directory = self.host.directory(self.spec)
        argv = [str(self.host.agent.programs[MAJOR].bin / "psql"), "-XqAtw", "-h", str(directory / "run")]
        argv += ["-p", str(self.spec.port), "-U", user, "-d", database, "-c", script]
        return unprivileged.run(self.host.account(self.spec), argv)

    @property
    def pid(self) -> int:
        return int((self.host.home / "s6" / f"pool-{self.spec.node_id}" / "holder").read_text())


@pytest.fixture(scope="module")
def pooled(host: RunningHost) -> Pooled:
    return Pooled(host, MAIN)


def test_many_clients_share_few_connections_and_keep_their_prepared_statements(pooled: Pooled) -> None:
    assert pooled.host.link.statuses[pooled.spec.node_id].pooler == (_found.version if _found else "")
    pids: set[int] = set()
    errors: list[Exception] = []

    def client(number: int) -> None:
        try:
            with pooled.connect() as connection:
                connection.prepare_threshold = 0
                for turn in range(20):
                    row = connection.execute("SELECT pg_backend_pid(), %s::int + 1", (number + turn,)).fetchone()
                    assert row[1] == number + turn + 1
                    pids.add(row[0])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and 1 <= len(pids) <= 10


def test_ways_in_that_are_no_pool_are_closed(pooled: Pooled) -> None:
    for pool in ("pgbouncer", "postgres", "template1", "pgherd_auth", "defaultdb", "none"):
        pooled.refused(pool)
    assert "TLS" in pooled.refused(sslmode="disable") or "SSL" in pooled.refused(sslmode="disable")
    pooled.refused(user="postgres")
    pooled.refused(user="pgherd_pooler", password="")
    assert "authentication failed" in pooled.refused(password="wrong-one")


def test_a_changed_password_and_a_dropped_user_count_at_once(pooled: Pooled) -> None:
    pooled.user("app", "first-secret")
    pooled.connect(user="app", password="first-secret").close()
    pooled.user("app", "other-secret", "set-password")
    pooled.connect(user="app", password="other-secret").close()
    pooled.refused(user="app", password="first-secret")
    with pooled.connect() as connection:
        assert connection.execute("SELECT session_user").fetchone() == ("avnadmin",)
    with pooled.host.connect(pooled.spec) as connection:
        connection.execute("ALTER ROLE app VALID UNTIL '2020-01-01'")
    pooled.refused(user="app", password="other-secret")
    pooled.user("app", "", "drop-user")
    pooled.refused(user="app", password="other-secret")


def test_a_pool_with_a_user_refuses_others_and_other_pools_keep_their_connections(pooled: Pooled) -> None:
    pooled.user("only", "only-secret")
    with pooled.connect() as kept:
        before = pooled.pid
        pooled.change(
            pools=[MAIN, Pool("mine", "defaultdb", "session", 3, "only"), Pool("open", "defaultdb", "session", 2)]
        )
        pooled.connect("mine", user="only", password="only-secret").close()
        pooled.refused("mine")
        with pooled.connect("open") as closing:
            pooled.change(pools=[MAIN, Pool("open", "defaultdb", "session", 2, "only")])
            with pytest.raises(psycopg.OperationalError):
                closing.execute("SELECT 1")
        pooled.refused("mine", user="only", password="only-secret")
        pooled.change(pools=[MAIN])
        assert kept.execute("SELECT 1").fetchone() == (1,)
        assert pooled.pid == before


def test_the_ip_filter_closes_the_pools_and_cuts(host: RunningHost) -> None:
    pooled = Pooled(host, MAIN, loopback=False, ip_filter=["127.0.0.1/32"])
    with pooled.connect() as connection:
        connection.execute("SELECT 1")
        pooled.change(ip_filter=["192.0.2.0/24"])
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    pooled.refused()
    pooled.change(ip_filter=["127.0.0.0/8"])
    pooled.connect().close()


def test_a_killed_pgbouncer_is_back_within_a_second(pooled: Pooled) -> None:
    """One that has lived for three seconds; a busy machine gets three tries."""
    times = []
    holder = pooled.host.home / "s6" / f"pool-{pooled.spec.node_id}" / "holder"
    while not times or (min(times) >= 1 and len(times) < 3):
        until(lambda: time.time() - holder.stat().st_mtime > 3.1, 5)
        dead, started = pooled.pid, time.monotonic()
        os.kill(dead, signal.SIGKILL)
        until(lambda: _connects(pooled), 10)
        times.append(time.monotonic() - started)
        assert pooled.pid != dead
    assert min(times) < 1, times


def test_pools_work_again_after_a_restart_and_a_stop_and_go_with_the_last_one(host: RunningHost) -> None:
    pooled = Pooled(host, MAIN)
    pooled.change(restart=1)
    until(lambda: _connects(pooled), 5)
    pooled.change(desired="stopped")
    pooled.refused()
    pooled.change(desired="running")
    pooled.connect().close()
    pooled.change(pools=[])
    assert host.link.statuses[pooled.spec.node_id].pooler == ""
    pooled.refused()
    service = host.home / "s6" / f"pool-{pooled.spec.node_id}"
    assert not service.exists()
    pooled.change(pools=[MAIN])
    pooled.change(desired="absent")
    assert not service.exists() and not host.directory(pooled.spec).exists()


def test_the_role_of_the_look_up_can_do_nothing_else(pooled: Pooled) -> None:
    look = "SELECT name, left(verifier, 13) FROM pgherd_pooler.lookup('%s')"
    assert pooled.psql("pgherd_pooler", look % "avnadmin").out.strip() == b"avnadmin|SCRAM-SHA-256"
    for name in ("postgres", "pgherd_pooler", "nobody"):
        answer = pooled.psql("pgherd_pooler", look % name)
        assert (answer.code, answer.out.strip()) == (0, b"")
    for statement in (
        "SELECT rolpassword FROM pg_authid", "CREATE TABLE public.t ()", "CREATE TABLE pgherd_pooler.t ()",
        "CREATE TEMPORARY TABLE t ()", "CREATE SCHEMA s", "CREATE ROLE r", "SET ROLE avnadmin", "CREATE DATABASE d",
        "SELECT pg_reload_conf()", "SELECT pg_read_file('/etc/passwd')", "COPY (SELECT 1) TO PROGRAM 'true'",
    ):  # fmt: skip
        assert pooled.psql("pgherd_pooler", statement).code != 0, statement
    assert pooled.psql("pgherd_pooler", "SELECT 1", "defaultdb").code != 0
    assert "pgherd_pooler" not in {role.name for role in pooled.host.link.statuses[pooled.spec.node_id].users}


def test_the_admin_gains_nothing_by_that_role_and_what_it_breaks_is_repaired(pooled: Pooled) -> None:
    with pooled.host.connect(pooled.spec) as connection:
        with contextlib.suppress(psycopg.Error):
            connection.execute("GRANT pgherd_pooler TO avnadmin")
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT * FROM pgherd_pooler.lookup('avnadmin')")
        with contextlib.suppress(psycopg.Error):
            connection.execute("ALTER ROLE pgherd_pooler PASSWORD 'mine-now-then' NOLOGIN")
            connection.execute("ALTER ROLE pgherd_pooler SET role = 'avnadmin'")
    for database in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError):
            pooled.host.connect(pooled.spec, dbname=database).close()
    for user in ("pgherd_pooler", "postgres"):
        with pytest.raises(psycopg.OperationalError):
            pooled.host.connect(pooled.spec, user=user, password="mine-now-then").close()
    pooled.change()
    pooled.connect().close()
    member = pooled.psql("postgres", "SELECT count(*) FROM pg_auth_members WHERE roleid = 'pgherd_pooler'::regrole")
    assert member.out.strip() == b"0"


def test_pools_for_all_users_never_take_more_than_they_may_and_the_look_up_has_its_own(host: RunningHost) -> None:
    """Three users of a pool of 6, beside one of 5, in a service of 25: 20 are for pools, so this one gets 15."""
    pooled = Pooled(host, Pool("all", "defaultdb", "session", 6), Pool("mine", "defaultdb", "session", 5, "avnadmin"))
    pooled.change(max_connections=25, restart=1)
    users = ["avnadmin", "second", "third"]
    for user in users[1:]:
        pooled.user(user, "secret-of-it")
    own = {user: {} if user == "avnadmin" else {"user": user, "password": "secret-of-it"} for user in users}
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(pooled.connect("mine")) for _ in range(5)]
        for user, count in (("second", 6), ("third", 6), ("avnadmin", 3)):
            held += [stack.enter_context(pooled.connect("all", **own[user])) for _ in range(count)]
        for connection in held:
            connection.execute("SELECT 1")
        # The look-up's connections end; what pools hold leaves it room to come back.
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'pgherd_pooler'"
        pooled.psql("postgres", ended)
        waiting = stack.enter_context(pooled.connect("all", connect_timeout=20))
        answers: list[Any] = []
        more = threading.Thread(target=lambda: answers.append(waiting.execute("SELECT session_user").fetchone()))
        more.start()
        count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> 'postgres'"
        seen = int(pooled.psql("postgres", f"{count} AND usename <> 'pgherd_pooler'").out)
        assert (seen, answers) == (20, [])
        held[5].close()
        more.join(20)
        assert answers == [("avnadmin",)], "another user's idle connection was given up for it"
        assert int(pooled.psql("postgres", f"{count} AND usename <> 'pgherd_pooler'").out) <= 20


def test_pools_that_nobody_named_and_the_other_parameters(host: RunningHost) -> None:
    pooler = {
        "autodb_pool_size": 2, "autodb_pool_mode": "session", "autodb_max_db_connections": 3, "autodb_idle_timeout": 77,
        "min_pool_size": 1, "server_idle_timeout": 88, "server_lifetime": 99, "server_reset_query_always": True,
        "ignore_startup_parameters": "extra_float_digits,search_path", "max_prepared_statements": 33,
        "max_client_conn": 8000,
    }  # fmt: skip
    pooled = Pooled(host, pooler=pooler)
    with pooled.connect("defaultdb", options="") as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("defaultdb",)
    for closed in ("postgres", "template1", "pgbouncer", "pgherd_auth"):
        pooled.refused(closed)
    console = host.agent.nodes[pooled.spec.node_id]
    shown = {row["key"]: row["value"] for row in pgbouncer._ask(_console(host, console.spec), "SHOW CONFIG") or []}
    for name in ("autodb_idle_timeout", "min_pool_size", "server_idle_timeout", "server_lifetime",
                 "max_prepared_statements", "max_client_conn"):  # fmt: skip
        assert shown[name] == str(pooler[name])
    assert shown["server_reset_query_always"] == "1"
    assert shown["ignore_startup_parameters"] == "extra_float_digits,search_path"
    databases = {row["name"]: row for row in pgbouncer._ask(_console(host, console.spec), "SHOW DATABASES") or []}
    row = databases["defaultdb"]
    assert (row["pool_size"], row["pool_mode"], row["max_connections"]) == ("2", "session", "3")


def test_what_the_file_cannot_hold_is_refused_and_the_node_runs_on(host: RunningHost) -> None:
    for pool in (Pool('a"b', "defaultdb", "session", 1), Pool("pgbouncer", "defaultdb", "session", 1),
                 Pool("x", "a\nb", "session", 1), Pool("x", "d", "session", 1, 'u" all')):  # fmt: skip
        spec = host.spec(pools=[pool])
        host.link.wish(spec)
        status = host.until(spec, lambda s: "not acceptable" in s.reason)
        assert (status.state, status.step) == ("running", "pools")
        assert status.refused == spec.generation, "the operation need not wait for its time-out"
        host.until_in_force(host.change(spec, desired="absent"))


def test_a_database_of_an_odd_name_can_have_a_pool(pooled: Pooled) -> None:
    odd = "it's; host=x"
    with pooled.host.connect(pooled.spec) as connection:
        connection.execute(f'CREATE DATABASE "{odd}"'.encode())
    pooled.change(pools=[MAIN, Pool("odd-1.x", odd, "session", 1)])
    with pooled.connect("odd-1.x") as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (odd,)
    pooled.change(pools=[MAIN])


def _console(host: RunningHost, spec: NodeSpec) -> pgbouncer.Console:
    program = host.agent.programs[MAJOR]
    return pgbouncer.Console(program.bin / "psql", host.directory(spec) / "run", spec.port + 1, host.account(spec))


def _connects(pooled: Pooled) -> bool:
    try:
        with pooled.connect(connect_timeout=2) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True
