"""Endurance: random operations while random processes of pgherd die, for PGHERD_CHAOS_SECONDS (300 when not set).

The seed is printed; PGHERD_CHAOS_SEED runs the same schedule again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import requests

from tests.durability.kills import assert_nothing_is_left
from tests.plugins.instance import Instance, running_instance

SECONDS = float(os.environ.get("PGHERD_CHAOS_SECONDS", "300"))
VICTIMS = ("pgherd api", "pgherd worker", "pgherd agent", "s6-supervise", "s6-svscan", "s6-log", "pgbouncer")
WRITER = "writer"


def _insist(instance: Instance, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Send the same signed request until it is answered; a service whose change is under way may answer 404 or 409."""
    request = instance.sign(requests.Request(method, instance.endpoint + path, json=body))
    while True:
        with contextlib.suppress(requests.ConnectionError), requests.Session() as session:
            answer = session.send(request, timeout=30)
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            if answer.status_code == 200:
                return instance.finished(answer.json(), 120)
            assert answer.status_code == 503, answer.text
        time.sleep(0.2)


class _Ledger(threading.Thread):
    """Writes to one service all the time and remembers what was acknowledged; `dsn` is asked at each connection."""

    def __init__(self, dsn: Callable[[], str], table: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.table, self.ending = dsn, table, threading.Event()
        self.number = self.acknowledged = 0

    def run(self) -> None:
        while not self.ending.is_set():
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self.dsn(), autocommit=True) as connection,
            ):
                insert = f"insert into {self.table} values (%s)".encode()
                while not self.ending.is_set():
                    # An insert that was not acknowledged may be there all the same: no number is used twice.
                    self.number += 1
                    connection.execute(insert, [self.number])
                    self.acknowledged += 1

    def end(self, instance: Instance, service: str) -> None:
        """Every acknowledged write is there."""
        self.ending.set()
        self.join(30)
        assert self.acknowledged > 0, self.table
        ((count,),) = instance.sql(service, f"select count(*) from {self.table}")
        assert count >= self.acknowledged, self.table


class _Access:
    """Random changes to users, databases and pools of the ledger's service, and what there must be of them."""

    def __init__(self, instance: Instance, service: str, draw: random.Random) -> None:
        self.instance, self.service, self.draw = instance, service, draw
        self.users: list[str] = []
        self.databases: list[str] = []
        self.pools: dict[str, int] = {}
        self.path = f"/dbaas-postgres/{service}"

    def begin(self) -> tuple[_Ledger, _Ledger]:
        """One ledger writes to PostgreSQL as the admin, the other through a pool as a user whose password changes."""
        instance, service = self.instance, self.service
        instance.sql(service, "create table direct (i int primary key); create table pooled (i int primary key)")
        self.call("POST", "/user", {"username": WRITER})
        instance.sql(service, f"grant insert on pooled to {WRITER}")
        self.call("POST", "/connection-pool", {"name": "steady", "database-name": "defaultdb", "size": 2})
        admin, port = instance.dsn(service), self.get()["uri-params"]["port"]

        def through_the_pool() -> str:
            with contextlib.suppress(Exception):
                found = instance.client().reveal_dbaas_postgres_user_password(service_name=service, username=WRITER)
                self.password = found["password"]
            where = {"user": WRITER, "password": self.password, "dbname": "steady", "port": str(int(port) + 1)}
            return psycopg.conninfo.make_conninfo(admin, **where)

        self.password = ""
        return _Ledger(lambda: admin, "direct"), _Ledger(through_the_pool, "pooled")

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        done = _insist(self.instance, method, self.path + path, body)
        assert done["state"] == "success", (method, path, done)
        return done

    def get(self) -> dict[str, Any]:
        return dict(self.instance.client().get_dbaas_service_pg(name=self.service))

    def change(self) -> str:
        """One of the changes that are possible now; its name."""
        name = f"x{self.draw.getrandbits(40):010x}"
        possible = ["reset", "user", "database"] + ["pool"] * (len(self.pools) < 4)
        possible += ["drop user"] * bool(self.users) + ["drop database"] * bool(self.databases)
        possible += ["change pool", "drop pool"] * bool(self.pools)
        what = self.draw.choice(possible)
        if what == "reset":
            self.call("PUT", f"/user/{WRITER}/password/reset", {})
        elif what == "user":
            self.call("POST", "/user", {"username": name, "allow-replication": self.draw.random() < 0.5})
            self.users.append(name)
        elif what == "database":
            self.call("POST", "/database", {"database-name": name})
            self.databases.append(name)
        elif what == "pool":
            self.pools[name] = self.draw.randrange(1, 4)
            self.call(
                "POST", "/connection-pool", {"name": name, "database-name": "defaultdb", "size": self.pools[name]}
            )
        elif what == "drop user":
            self.call("DELETE", f"/user/{self.users.pop(self.draw.randrange(len(self.users)))}")
        elif what == "drop database":
            self.call("DELETE", f"/database/{self.databases.pop(self.draw.randrange(len(self.databases)))}")
        elif what == "change pool":
            chosen = self.draw.choice(sorted(self.pools))
            self.pools[chosen] = self.draw.randrange(1, 4)
            self.call("PUT", f"/connection-pool/{chosen}", {"size": self.pools[chosen]})
        else:
            chosen = self.draw.choice(sorted(self.pools))
            del self.pools[chosen]
            self.call("DELETE", f"/connection-pool/{chosen}")
        return what

    def check(self) -> None:
        """GET shows what the changes left."""
        seen = self.get()
        assert {one["username"] for one in seen["users"]} == {"avnadmin", WRITER, *self.users}
        assert set(seen["databases"]) == {"defaultdb", *self.databases}
        assert {one["name"]: one["size"] for one in seen["connection-pools"]} == self.pools | {"steady": 2}


def _kill_somebody(instance: Instance, victim: str, draw: random.Random) -> None:
    found = instance.processes(victim)
    if found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(found), signal.SIGKILL)


@pytest.mark.timeout(SECONDS + 600)
def test_random_kills_lose_nothing() -> None:
    seed = int(os.environ.get("PGHERD_CHAOS_SEED", str(random.SystemRandom().randrange(1 << 32))))
    print(f"PGHERD_CHAOS_SEED={seed}")
    draw = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    with running_instance() as instance:
        ledger_name = instance.create()
        access = _Access(instance, ledger_name, draw)
        ledgers = access.begin()
        for ledger in ledgers:
            ledger.start()
        names: list[str] = []
        count, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            victim, start = draw.choice(VICTIMS), time.monotonic()
            killer = threading.Timer(draw.random(), _kill_somebody, (instance, victim, draw))
            killer.start()
            what = draw.choice(["create", "update", "delete", "access", "access"]) if names else "create"
            if what == "access":
                what, done = access.change(), {"state": "success"}
            elif what == "create" and len(names) < 5:
                names.append(f"c-{uuid.UUID(int=draw.getrandbits(128)).hex[:10]}")
                done = _insist(instance, "POST", f"/dbaas-postgres/{names[-1]}", {"plan": "hobbyist-2"})
            elif what == "delete":
                done = _insist(instance, "DELETE", f"/dbaas-service/{names.pop(draw.randrange(len(names)))}")
            else:
                body = {"pg-settings": {"max_files_per_process": draw.randrange(1000, 4096)}}
                done = _insist(instance, "PUT", f"/dbaas-postgres/{draw.choice(names)}", body)
            assert done["state"] == "success", done
            killer.join()
            count += 1
            print(f"{what} with {victim} killed: {time.monotonic() - start:.1f} s")
        for ledger in ledgers:
            ledger.end(instance, ledger_name)
        access.check()
        for name in [ledger_name, *names]:
            assert _insist(instance, "DELETE", f"/dbaas-service/{name}")["state"] == "success"
        assert_nothing_is_left(instance)
        written = " and ".join(f"{ledger.acknowledged} ({ledger.table})" for ledger in ledgers)
        print(f"{count} operations, {written} acknowledged writes")
