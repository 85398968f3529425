"""Two workers race for one operation: the one that was stopped may write nothing when it wakes."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
import uuid

import pytest

from tests.contract.processes import metadata, stopped
from tests.durability.kills import arm, assert_nothing_is_left, disarm, trace
from tests.plugins.instance import ROOTED, Instance, process_state, until


def _second_worker(instance: Instance) -> subprocess.Popen[bytes]:
    """Another worker beside the supervised one, as another host of the control plane would have it."""
    account = pwd.getpwnam("pgherd") if ROOTED else None
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    env = {"PGHERD_HOME": str(instance.home), "PGHERD_FAILPOINTS": str(instance.failpoints), "PATH": os.environ["PATH"]}
    program = str(instance.home / "current/bin/pgherd")
    return subprocess.Popen([program, "worker"], env=env, stderr=subprocess.DEVNULL, cwd="/", **identity)  # type: ignore[call-overload,no-any-return]


@pytest.mark.timeout(240)
def test_stopped_worker_loses_its_operation(fragile: Instance) -> None:
    trace(fragile)
    second = _second_worker(fragile)
    name = f"k-{uuid.uuid4().hex[:10]}"
    asleep = 0
    try:
        until(lambda: len(fragile.processes("pgherd worker")) == 2, 20, "two workers run")
        for fired in fragile.failpoints.glob("fired-*"):
            fired.unlink()
        arm(fragile, "worker create start nodes done stop")
        opened = fragile.call("POST", f"/v2/dbaas-postgres/{name}", {"plan": "hobbyist-2"}).json()
        assert opened["state"] == "pending"
        asleep = int(until(lambda: list(fragile.failpoints.glob("fired-*")), 20, "a worker stopped")[0].name[6:])
        until(lambda: process_state(asleep) == "T", 5, "it is stopped")
        done = fragile.finished(opened, 90)
        assert done["state"] == "success", "the other worker takes over and ends the operation"
        assert process_state(asleep) == "T", "it was stopped until the other had ended"
        os.kill(asleep, signal.SIGCONT)
        until(lambda: process_state(asleep) in ("", "Z"), 60, "the worker that was taken over from ends itself")
        asleep = 0
        assert fragile.client().get_operation(id=done["id"]) == done
        assert fragile.sql(name, "select 1") == [(1,)]
        fragile.delete(name)
    finally:
        disarm(fragile)
        if asleep:
            os.kill(asleep, signal.SIGCONT)
        second.terminate()
        second.wait(20)
    until(lambda: len(fragile.processes("pgherd worker")) == 1, 20, "the supervised worker is back")
    assert_nothing_is_left(fragile)


#: Looks inside the server, each 5 ms: a run that came back has its job for 0.1 s only.
_TAKE_AWAY = """do $$ declare started timestamptz := clock_timestamp(); begin loop
    update procrastinate_jobs set worker_id = null where status = 'doing' and args ->> 'operation' = '{operation}';
    exit when found;
    commit;
    if clock_timestamp() > started + interval '20 s' then raise 'no worker has the job'; end if;
    perform pg_sleep(0.005);
end loop; end $$"""


@pytest.mark.timeout(120)
def test_a_worker_gives_back_no_job_of_another(instance: Instance) -> None:
    """Its job went to another while the run waits for a host: the worker ends itself when it wants to give it back."""
    name = f"k-{uuid.uuid4().hex[:10]}"
    before = instance.processes("pgherd worker")
    with stopped(instance, "agent"):
        opened = instance.client().create_dbaas_service_pg(name=name, plan="hobbyist-2")
        metadata(instance, _TAKE_AWAY.format(operation=opened["id"]))
        until(lambda: instance.processes("pgherd worker") not in ([], before), 20, "another process works")
    assert instance.finished(opened)["state"] == "success"
    instance.delete(name)


@pytest.mark.timeout(120)
def test_dead_worker_gives_its_jobs_to_the_other(fragile: Instance) -> None:
    """kill -9 of one of two: its slot is free at once, so nobody waits for a heartbeat to be missed."""
    trace(fragile)
    second = _second_worker(fragile)
    names = [f"k-{uuid.uuid4().hex[:10]}" for _ in range(4)]
    try:
        until(lambda: len(fragile.processes("pgherd worker")) == 2, 20, "two workers run")
        arm(fragile, "worker create start nodes kill")
        opened = [fragile.client().create_dbaas_service_pg(name=name, plan="hobbyist-2") for name in names]
        start = time.monotonic()
        for operation in opened:
            assert fragile.finished(operation)["state"] == "success"
        assert time.monotonic() - start < 15
        for name in names:
            fragile.delete(name)
    finally:
        disarm(fragile)
        second.terminate()
        second.wait(20)
    assert_nothing_is_left(fragile)
