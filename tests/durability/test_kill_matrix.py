"""Any process may die at any instant: every operation ends exactly once and leaves nothing behind.

During a create and a restore here, during all other operations by `make chaos`.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import psycopg
import pytest
import requests

from tests.durability.kills import OPERATIONS, assert_nothing_is_left, clear, kill_at_every_place, rounds
from tests.plugins.instance import Instance


@pytest.fixture(autouse=True)
def _alone(fragile: Instance) -> Iterator[None]:
    yield
    clear(fragile)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "process"), rounds(["create", "restore"]))
def test_killed_at_every_place(fragile: Instance, kind: str, process: str) -> None:
    kill_at_every_place(fragile, kind, process)


@pytest.mark.timeout(300)
def test_every_step_may_be_run_twice(fragile: Instance) -> None:
    twice = fragile.failpoints / "twice"
    twice.touch()
    try:
        for kind in OPERATIONS:
            operation = OPERATIONS[kind]()
            name = operation.prepare(fragile)
            assert operation.run(fragile, name)["state"] == "success"
            operation.check(fragile, name)
            if getattr(operation, "name", ""):
                fragile.delete(operation.name)
    finally:
        twice.unlink()
    assert_nothing_is_left(fragile)


@pytest.mark.timeout(300)
def test_everything_dies_at_once(fragile: Instance) -> None:
    """kill -9 of every process of ours but the databases, in the middle of three creates; `up` brings all to an end."""
    steady = fragile.create()
    dsn = fragile.dsn(steady)
    names = [f"k-{uuid.uuid4().hex[:10]}" for _ in range(3)]
    opened = []
    for name in names:
        with contextlib.suppress(requests.ConnectionError):
            answer = fragile.call("POST", f"/v2/dbaas-postgres/{name}", {"plan": "hobbyist-2"})
            opened.append((name, answer.json()))
    for word in ("s6-svscan", "s6-supervise", "/bin/pgherd"):
        for pid in fragile.processes(word):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    fragile.run("up")
    for name, operation in opened:
        assert fragile.finished(operation)["state"] == "success"
        assert fragile.sql(name, "select 1") == [(1,)]
    assert fragile.sql(steady, "select 1") == [(1,)]
    for name in [steady, *names]:
        fragile.delete(name)
    assert_nothing_is_left(fragile)
