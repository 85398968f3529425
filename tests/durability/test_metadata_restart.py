"""The metadata goes away and comes back, a process stops with its rows locked, hosts stay away: the rest goes on."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
import uuid

import pytest

from tests.contract.processes import metadata, stopped
from tests.durability.kills import arm, disarm
from tests.plugins.instance import Instance, until

LISTENERS = (
    "select count(*) from pg_stat_activity where query ilike 'listen%procrastinate_any_queue%' or query ilike"
    " 'listen pgherd_status%' or query ilike 'listen pgherd_answer%'"
)
# Holds the jobs until a worker wants to give one back, and cuts that worker off; false: none wanted to for a while.
CUT_OFF = """
create function pg_temp.cut_off() returns boolean language plpgsql as $$
begin
    lock table procrastinate_jobs in access exclusive mode;
    for look in 1..200 loop
        perform pg_sleep(0.01), pg_stat_clear_snapshot();
        perform pg_terminate_backend(pid) from pg_stat_activity
          where wait_event_type = 'Lock' and query like '%procrastinate_retry_job%'
            and query not like '%worker_slot%' and query not like '%heartbeat%';  -- those give back what others left
        if found then
            return true;
        end if;
    end loop;
    return false;
end $$;
select pg_temp.cut_off()
"""
SLOTS = "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2"


@pytest.mark.timeout(120)
def test_metadata_restart(instance: Instance) -> None:
    """Requests are refused within seconds meanwhile; afterwards everybody listens again and the worker has its slot."""
    name = instance.create()
    workers = instance.processes("pgherd worker")
    with stopped(instance, "metadata"):
        start = time.monotonic()
        assert instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 503
        assert time.monotonic() - start < 10
        time.sleep(max(0.0, 5 - (time.monotonic() - start)))  # an outage of some length is what is tested
    until(lambda: instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 200, 10, "the API answers")
    until(lambda: metadata(instance, LISTENERS) == "3", 20, "worker and API listen again")
    until(lambda: metadata(instance, SLOTS) == "1", 20, "the worker has a slot again")
    assert instance.processes("pgherd worker") == workers

    def deleted() -> bool:
        """Clients that meet a 503 send again; the writing side may still be connecting anew."""
        answer = instance.call("DELETE", f"/v2/dbaas-service/{name}")
        return answer.status_code == 200 and instance.finished(answer.json())["state"] == "success"

    until(deleted, 20, "changes are accepted again")


@pytest.mark.timeout(120)
def test_a_job_that_could_not_be_given_back_is_not_forgotten(instance: Instance) -> None:
    """The worker loses its connection while it gives a job back, and lives on."""
    name, workers = f"t-{uuid.uuid4().hex[:10]}", instance.processes("pgherd worker")
    with stopped(instance, "agent"):
        opened = instance.client().create_dbaas_service_pg(name=name, plan="hobbyist-2")
        until(lambda: metadata(instance, CUT_OFF) == "t", 40, "a job could not be given back")
    assert instance.finished(opened, 30)["state"] == "success"
    assert instance.processes("pgherd worker") == workers
    instance.delete(name)


@pytest.mark.timeout(180)
def test_waiting_operations_starve_no_other(instance: Instance) -> None:
    """More operations wait for a host than the worker has threads; a new one starts all the same."""
    names = [f"t-{uuid.uuid4().hex[:10]}" for _ in range(12)]
    with stopped(instance, "agent"), concurrent.futures.ThreadPoolExecutor(12) as clients:
        answers = clients.map(lambda n: instance.client().create_dbaas_service_pg(name=n, plan="hobbyist-2"), names)
        assert {answer["state"] for answer in answers} == {"pending"}
        late = instance.client().create_dbaas_service_pg(name=f"t-{uuid.uuid4().hex[:10]}", plan="hobbyist-2")
        step = f"select step from operation where id = '{late['id']}'"
        until(lambda: metadata(instance, step) == "start nodes", 15, "the new operation got as far as the others")
    assert instance.finished(late, 90)["state"] == "success"
    for name in names:
        instance.delete(name)


@pytest.mark.timeout(120)
def test_stopped_worker_holds_no_lock_for_ever(fragile: Instance) -> None:
    """A worker stopped within a transaction holds its service; a delete of the service gets through."""
    for fired in fragile.failpoints.glob("fired-*"):
        fired.unlink()
    name = f"k-{uuid.uuid4().hex[:10]}"
    arm(fragile, "worker create before record stop")
    pid = 0
    try:
        fragile.client().create_dbaas_service_pg(name=name, plan="hobbyist-2")
        pid = int(until(lambda: list(fragile.failpoints.glob("fired-*")), 20, "the worker stopped")[0].name[6:])

        def deleted() -> bool:
            return fragile.call("DELETE", f"/v2/dbaas-service/{name}").status_code == 200

        until(deleted, 60, "the delete is accepted")
        assert fragile.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 404
    finally:
        disarm(fragile)
        if pid:
            os.kill(pid, signal.SIGCONT)
    left = f"select count(*) from service where name = '{name}' and cleared_at is null"
    until(lambda: metadata(fragile, left) == "0", 40, "nothing of it is left")
