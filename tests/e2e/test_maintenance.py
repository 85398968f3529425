"""Updates that wait are real, and come into force when asked for or in the service's window, by themselves.

The instance runs real servers of an older minor: copies of the installed programs in which only the version's text is
another. Installing the newer one is putting the original in their place, as a package does.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd.drivers import pgbouncer, postgres
from pgherd.model.maintenance import Calendar
from pgherd.model.service import Maintenance
from pgherd.reconcilers.upkeep import AT_ONCE
from tests.contract.processes import metadata, stopped
from tests.e2e.test_power import turn
from tests.plugins.instance import Instance, until

MAJOR = "15"


class Programs:
    """PostgreSQL and PgBouncer of an older minor, each to be replaced by what is really installed."""

    def __init__(self, place: Path) -> None:
        self._postgres, pooler = postgres.programs("")[MAJOR], pgbouncer.program("")
        assert pooler is not None
        # The same places relative to each other, by which PostgreSQL finds its libraries.
        self.bin, self.pooler = place / "lib/postgresql" / MAJOR / "bin", place / "pgbouncer"
        self._place = place
        self.bin.mkdir(parents=True)
        (self.bin.parent / "lib").symlink_to(self._postgres.library_files)
        (place / "share/postgresql").mkdir(parents=True)
        (place / "share/postgresql" / MAJOR).symlink_to(self._postgres.control_files.parent)
        for program in self._postgres.bin.iterdir():
            if program.name != "postgres":
                (self.bin / program.name).symlink_to(program)
        self._old_postgres = _older(self._postgres.bin / "postgres", self.bin / "postgres", self._postgres.version)
        self._real = Path(pooler.path)
        self._script = self._real.read_bytes() if self._real.read_bytes().startswith(b"#!") else b""
        if self._script:  # what install/pgbouncer.sh leaves: a script beside the program proper
            self._real = self._real.parents[1] / "usr/sbin/pgbouncer"
        self._old_pooler = _older(self._real, self._program, pooler.version)
        self._call()
        self.versions = {
            "postgresql": (self._old_postgres, self._postgres.version),
            "pgbouncer": (self._old_pooler, pooler.version),
        }

    @property
    def _program(self) -> Path:
        """The program proper of PgBouncer."""
        return self._place / "pgbouncer-program" if self._script else self.pooler

    def _call(self) -> None:
        if self._script:
            aside = self._place / ".pgbouncer.new"
            aside.write_bytes(self._script.replace(b'"$p/usr/sbin/pgbouncer"', str(self._program).encode()))
            aside.chmod(0o755)
            aside.rename(self.pooler)

    def install(self, name: str) -> None:
        """What a package does: the program, and what calls it, is another file."""
        if name == "postgresql":
            _replace(self._postgres.bin / "postgres", self.bin / "postgres")
        else:
            _replace(self._real, self._program)
            self._call()

    def age(self) -> None:
        """PostgreSQL is the older one again."""
        _older(self._postgres.bin / "postgres", self.bin / "postgres", self._postgres.version)


def _older(source: Path, target: Path, version: str) -> str:
    """A program that calls itself one minor older; that version."""
    head, last = re.fullmatch(r"(.*?)(\d+)", version).groups()  # type: ignore[union-attr]
    older = f"{head}{int(last) - 1:0{len(last)}}"
    assert len(older) == len(version)
    aside = target.with_name(f".{target.name}.new")
    aside.write_bytes(source.read_bytes().replace(version.encode(), older.encode()))
    aside.chmod(0o755)
    aside.rename(target)
    return older


def _replace(source: Path, target: Path) -> None:
    aside = target.with_name(f".{target.name}.new")
    shutil.copy(source, aside)
    aside.rename(target)


@pytest.fixture(scope="module")
def aged() -> Iterator[tuple[Instance, Programs]]:
    """An instance with older programs."""
    made = Instance(warm_pool="1")
    programs = Programs(made.home / "programs")
    made.env |= {"PGHERD_POSTGRES_BINDIRS": f"{MAJOR}={programs.bin}", "PGHERD_PGBOUNCER": str(programs.pooler)}
    try:
        made.up()
        yield made, programs
    finally:
        made.clear()


def waiting(instance: Instance, name: str) -> list[dict[str, Any]]:
    return list(instance.client().get_dbaas_service_pg(name=name)["maintenance"]["updates"])


class Gap:
    """The longest time within the block in which a client got no answer, in seconds."""

    def __init__(self, dsn: str) -> None:
        self._dsn, self._over = dsn, threading.Event()
        self.seconds, self.lost = 0.0, 0

    def __enter__(self) -> Gap:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _ask(self) -> None:
        last, connection = time.monotonic(), None
        while not self._over.is_set():
            try:
                connection = connection or psycopg.connect(self._dsn, autocommit=True)
                connection.execute("select 1")
            except psycopg.Error:
                self.lost += connection is not None
                connection = None
                continue
            now = time.monotonic()
            self.seconds, last = max(self.seconds, now - last), now
        if connection:
            connection.close()


def maintain(instance: Instance, name: str) -> None:
    # Not by the SDK, for which two starts of one second are one (decision 0005).
    answer = instance.call("PUT", f"/v2/dbaas-postgres/{name}/maintenance/start")
    done = instance.finished(answer.json())
    assert done["state"] == "success", done


@pytest.mark.timeout(300)
def test_asked_for(aged: tuple[Instance, Programs]) -> None:
    instance, programs = aged
    name = instance.create()
    client = instance.client()
    pool = {"name": "p", "database-name": "defaultdb", "size": 3}
    made = instance.finished(instance.call("POST", f"/v2/dbaas-postgres/{name}/connection-pool", pool).json())
    assert made["state"] == "success", made
    pooled = instance.dsn(
        name, dbname="p", port=str(int(client.get_dbaas_service_pg(name=name)["uri-params"]["port"]) + 1)
    )
    assert client.get_dbaas_service_pg(name=name)["version"] == programs.versions["postgresql"][0]
    assert waiting(instance, name) == []
    # With nothing to do it is done at once.
    assert client.start_dbaas_pg_maintenance(name=name)["state"] == "success"

    started = "select pg_postmaster_start_time()::text"
    before = instance.sql(name, started)
    programs.install("pgbouncer")
    (update,) = until(lambda: waiting(instance, name), 60, "the agent notices the newer PgBouncer")
    assert update["description"].startswith(f"PgBouncer {programs.versions['pgbouncer'][1]} instead of")
    times = [datetime.fromisoformat(update[key]) for key in ("start-after", "start-at", "deadline")]
    assert datetime.now(UTC) < times[0] <= times[1] <= times[2]
    with Gap(pooled) as gap:
        maintain(instance, name)
    print(f"PgBouncer: {gap.seconds:.3f} s without an answer")
    assert waiting(instance, name) == []
    assert instance.sql(name, started) == before, "PostgreSQL goes on"

    programs.install("postgresql")
    (update,) = until(lambda: waiting(instance, name), 60, "the agent notices the newer PostgreSQL")
    assert update["description"].startswith(
        "PostgreSQL " + " instead of ".join(reversed(programs.versions["postgresql"]))
    )
    with Gap(instance.dsn(name)) as gap:
        maintain(instance, name)
    print(f"PostgreSQL: {gap.seconds:.3f} s without an answer")
    assert gap.lost > 0 and gap.seconds < 20
    assert waiting(instance, name) == []
    assert instance.sql(name, "show server_version")[0][0].split()[0] == programs.versions["postgresql"][1]
    assert client.get_dbaas_service_pg(name=name)["version"] == programs.versions["postgresql"][1]
    with psycopg.connect(pooled) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    instance.delete(name)


@pytest.mark.timeout(120)
def test_what_the_owner_did_not_ask_for_waits_for_maintenance(aged: tuple[Instance, Programs]) -> None:
    """A parameter of the platform that wants a restart gets none from a change that needs none."""
    instance, _ = aged
    name = instance.create()
    started = "select pg_postmaster_start_time()::text"
    before = instance.sql(name, started)
    instance.platform_sql(name, "alter system set max_replication_slots = 33")
    instance.platform_sql(name, "select pg_reload_conf()")
    # postgresql.conf would win if it named a larger one; what is pending is what counts.
    (update,) = until(lambda: waiting(instance, name), 30, "the parameter is seen to wait")
    assert "max_replication_slots" in update["description"]
    changed = instance.client().update_dbaas_service_pg(name=name, ip_filter=["192.0.2.1/32"])
    assert instance.finished(changed)["state"] == "success"
    assert instance.sql(name, started) == before
    maintain(instance, name)
    assert instance.sql(name, "show max_replication_slots") == [("33",)]
    assert waiting(instance, name) == []
    instance.delete(name)


@pytest.mark.timeout(240)
def test_the_window_acts_by_itself_once_the_service_is_well(aged: tuple[Instance, Programs]) -> None:
    instance, programs = aged
    programs.age()
    name = instance.create()
    client, service = instance.client(), ""
    mine = f"(select id from service where name = '{name}' and deleted_at is null)"
    service = metadata(instance, f"select id from {mine} s")
    programs.install("postgresql")
    until(lambda: waiting(instance, name), 60, "the update waits")
    noted = f"select count(*) from pending_update where service_id = {mine}"
    until(lambda: metadata(instance, noted) == "1", 30, "it is noted")
    metadata(instance, f"update pending_update set since = now() - interval '3 days' where service_id = {mine}")
    ended = f"select count(*) from operation where kind = 'maintenance' and service_id = {mine}"

    # The window opens while the server hangs: nothing is done to it.
    postmaster = (
        instance.home / "s6" / f"node-{metadata(instance, f'select id from node where service_id = {mine}')}" / "holder"
    )
    pid = int(postmaster.read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: client.get_dbaas_service_pg(name=name)["state"] != "running", 60, "its silence is noticed")
        open_now(instance, service)
        looked = time.monotonic()
        until(lambda: time.monotonic() > looked + 12, 30, "two looks of the reconciler have passed")
        assert metadata(instance, ended) == "0"
    finally:
        os.kill(pid, signal.SIGCONT)
    done = f"select string_agg(state, ',') from operation where kind = 'maintenance' and service_id = {mine}"
    until(lambda: metadata(instance, done) == "success", 120, "the window acts, once")
    assert waiting(instance, name) == []
    assert instance.sql(name, "show server_version")[0][0].split()[0] == programs.versions["postgresql"][1]
    instance.delete(name)


@pytest.mark.timeout(240)
def test_a_stopped_service_gets_it_by_its_start(aged: tuple[Instance, Programs]) -> None:
    instance, programs = aged
    programs.age()
    name = instance.create()
    client = instance.client()
    old, new = programs.versions["postgresql"]
    turn(instance, name, "stop")
    programs.install("postgresql")
    noticed = f"select facts -> 'versions' ->> '{MAJOR}' from host"
    until(lambda: metadata(instance, noticed) == new, 60, "the agent notices the newer PostgreSQL")
    stopped_one = client.get_dbaas_service_pg(name=name)
    assert (stopped_one["version"], stopped_one["maintenance"]["updates"]) == (old, [])
    turn(instance, name, "start")
    started = client.get_dbaas_service_pg(name=name)
    assert (started["version"], started["maintenance"]["updates"]) == (new, [])
    assert instance.sql(name, "show server_version")[0][0].split()[0] == new
    instance.delete(name)


@pytest.mark.timeout(240)
def test_two_services_of_a_host_at_once(aged: tuple[Instance, Programs]) -> None:
    """The windows of three open in the same minute while their host is slow; the third waits for one of the others."""
    instance, _ = aged
    names = [instance.create() for _ in range(AT_ONCE + 1)]
    listed = ", ".join(f"'{name}'" for name in names)
    mine = f"(select id from service where name in ({listed}) and deleted_at is null)"
    for name in names:
        instance.platform_sql(name, "alter system set max_replication_slots = 33")
        instance.platform_sql(name, "select pg_reload_conf()")
    noted = f"select count(*) from pending_update where service_id in {mine}"
    until(lambda: metadata(instance, noted) == str(len(names)), 60, "all updates are noted")
    opened = f"select count(*) from operation where kind = 'maintenance' and service_id in {mine}"
    with stopped(instance, "agent"):
        metadata(instance, f"update pending_update set since = now() - interval '3 days' where service_id in {mine}")
        for service in metadata(instance, f"select id from {mine} s").split():
            open_now(instance, service)
        until(lambda: metadata(instance, opened) == str(AT_ONCE), 30, "the windows act")
        looked = time.monotonic()
        until(lambda: time.monotonic() > looked + 8, 30, "a look of the reconciler has passed")
        assert metadata(instance, opened) == str(AT_ONCE)
    until(lambda: metadata(instance, f"{opened} and state = 'success'") == str(len(names)), 90, "all had their turn")
    for name in names:
        assert instance.sql(name, "show max_replication_slots") == [("33",)]
        instance.delete(name)


def open_now(instance: Instance, service: str) -> None:
    """Move the service's slot so that its turn came a minute ago."""
    offset = Calendar(Maintenance("never", "00:00:00"), service, 60)._offset
    begin = datetime.now(UTC) - timedelta(minutes=1) - offset
    slot = {"dow": begin.strftime("%A").lower(), "time": begin.strftime("%H:%M:%S")}
    metadata(instance, f"""
    update service set wish = jsonb_set(wish, '{{maintenance}}', '{{"dow": "{slot["dow"]}", "time": "{slot["time"]}"}}')
     where id = '{service}'
    """)  # fmt: skip
