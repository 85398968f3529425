"""An update that a host cannot bring into force leaves the service as it was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.processes import metadata, stopped
from tests.plugins.instance import Instance


@pytest.mark.timeout(120)
def test_settings_that_postgresql_cannot_start_with(instance: Instance) -> None:
    """Lock tables larger than the host's memory: PostgreSQL dies at the restart, and only there it shows."""
    name = instance.create(plan="startup-225", pg_settings={"max_locks_per_transaction": 128})
    client = instance.client()
    before = client.get_dbaas_service_pg(name=name)
    assert instance.sql(name, "create table kept (i) as select 1") == []
    too_much = {"max_locks_per_transaction": 6400, "max_pred_locks_per_transaction": 5120}
    opened = client.update_dbaas_service_pg(name=name, pg_settings=too_much | {"max_prepared_transactions": 10000})
    changed = f"select updated_at from service where name = '{name}' and deleted_at is null"
    asked = metadata(instance, changed)
    done = instance.finished(opened, 90)
    assert (done["state"], done["reason"]) == ("failure", "conflict")
    assert metadata(instance, changed) > asked, "what went back has changed again"
    assert "memory" in done["message"]
    after = client.get_dbaas_service_pg(name=name)
    assert after["state"] == "running"
    assert after["pg-settings"] == before["pg-settings"]
    assert instance.sql(name, "show max_locks_per_transaction") == [("128",)]
    assert instance.sql(name, "select i from kept") == [(1,)]
    again = client.update_dbaas_service_pg(name=name, pg_settings={"max_locks_per_transaction": 256})
    assert instance.finished(again)["state"] == "success"
    assert instance.sql(name, "show max_locks_per_transaction") == [("256",)]
    instance.delete(name)


def put_at_once(instance: Instance, name: str, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes that are all accepted before the first of them is carried out; how they ended."""
    with stopped(instance, "worker"):
        opened = [instance.call("PUT", f"/v2/dbaas-postgres/{name}", body).json() for body in bodies]
    assert all("id" in answer for answer in opened), opened
    return [instance.finished(operation, 120) for operation in opened]


def states(ended: list[dict[str, Any]]) -> list[str]:
    return [operation["state"] for operation in ended]


def with_nine_slots(instance: Instance) -> str:
    """A service that cannot start with fewer than nine replication slots, which only the start shows."""
    name = instance.create()
    made = "select count(pg_create_physical_replication_slot('s' || i)) from generate_series(1, 9) i"
    assert instance.platform_sql(name, made) == "9"
    return name


def slots(most: int) -> dict[str, Any]:
    return {"pg-settings": {"max_replication_slots": most}}


@pytest.mark.timeout(300)
def test_a_bad_update_takes_no_other_with_it(instance: Instance) -> None:
    name = with_nine_slots(instance)
    ended = put_at_once(instance, name, {"work-mem": 7}, slots(8), {"ip-filter": ["192.0.2.0/24"]}, slots(12))
    assert states(ended) == ["success", "failure", "success", "success"], ended
    assert "replication slots" in ended[1]["message"], ended
    shown = instance.client().get_dbaas_service_pg(name=name)
    assert (shown["state"], shown["ip-filter"], shown["work-mem"]) == ("running", ["192.0.2.0/24"], 7)
    assert shown["pg-settings"] == slots(12)["pg-settings"]
    assert instance.sql(name, "select count(*) from pg_replication_slots") == [(9,)]
    assert instance.sql(name, "show max_replication_slots") == [("12",)]

    # What needs the one that failed does not come into force without it.
    locks = {"max_locks_per_transaction": 6400, "max_pred_locks_per_transaction": 5120}
    larger = {"plan": "startup-16"} | slots(8)
    needy = {"pg-settings": locks | {"max_prepared_transactions": 300}}
    ended = put_at_once(instance, name, larger, needy, {"termination-protection": True})
    assert states(ended) == ["failure", "failure", "success"], ended
    assert ended[1]["reason"] == "incorrect" and "lock tables; plan hobbyist-2 has" in ended[1]["message"], ended
    shown = instance.client().get_dbaas_service_pg(name=name)
    assert (shown["plan"], shown["pg-settings"]) == ("hobbyist-2", slots(12)["pg-settings"])
    unprotected = instance.client().update_dbaas_service_pg(name=name, termination_protection=False)
    assert instance.finished(unprotected)["state"] == "success"
    instance.delete(name)
