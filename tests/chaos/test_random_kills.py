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
from typing import Any

import psycopg
import pytest
import requests

from tests.durability.test_kill_matrix import assert_nothing_is_left
from tests.plugins.instance import Instance, running_instance

SECONDS = float(os.environ.get("PGHERD_CHAOS_SECONDS", "300"))
VICTIMS = ("pgherd api", "pgherd worker", "pgherd agent", "s6-supervise", "s6-svscan", "s6-log")


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
    """Writes to one service all the time and remembers what was acknowledged."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.acknowledged, self.ending = dsn, 0, threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self.dsn, autocommit=True) as connection,
            ):
                connection.execute("create table if not exists ledger (i int primary key)")
                while not self.ending.is_set():
                    connection.execute("insert into ledger values (%s)", [self.acknowledged + 1])
                    self.acknowledged += 1


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
        ledger = _Ledger(instance.dsn(ledger_name))
        ledger.start()
        names: list[str] = []
        count, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            victim, start = draw.choice(VICTIMS), time.monotonic()
            killer = threading.Timer(draw.random(), _kill_somebody, (instance, victim, draw))
            killer.start()
            what = draw.choice(["create", "update", "delete"]) if names else "create"
            if what == "create" and len(names) < 5:
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
        ledger.ending.set()
        ledger.join(30)
        assert ledger.acknowledged > 0
        assert instance.sql(ledger_name, "select count(*), max(i) from ledger")[0] >= (ledger.acknowledged,) * 2
        for name in [ledger_name, *names]:
            assert _insist(instance, "DELETE", f"/dbaas-service/{name}")["state"] == "success"
        assert_nothing_is_left(instance)
        print(f"{count} operations, {ledger.acknowledged} acknowledged writes")
