"""A service is stopped and started because its organization asks for it, and only then."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.contract.processes import metadata
from tests.plugins.instance import Instance, until

POOL = {"name": "p", "database-name": "defaultdb", "size": 3}


def ask(instance: Instance, name: str, verb: str) -> Any:
    return instance.call("PUT", f"/pgherd/v1/service/{name}/{verb}")


def turn(instance: Instance, name: str, verb: str) -> None:
    """Stop or start, through to the end."""
    answer = ask(instance, name, verb)
    assert answer.status_code == 200, answer.text
    assert instance.finished(answer.json())["state"] == "success"


def refused(answer: Any) -> str:
    assert answer.status_code == 409, answer.text
    return str(answer.json()["message"])


@pytest.mark.timeout(180)
def test_stopped_and_started(instance: Instance) -> None:
    name = instance.create()
    client = instance.client()
    dsn = instance.dsn(name)
    instance.sql(name, "create table kept as select 7 as i")
    pool = instance.call("POST", f"/v2/dbaas-postgres/{name}/connection-pool", POOL)
    assert instance.finished(pool.json())["state"] == "success"
    before = client.get_dbaas_service_pg(name=name)

    turn(instance, name, "stop")
    shown = client.get_dbaas_service_pg(name=name)
    assert shown["state"] == "poweroff"
    assert f"pgherd service start {name}" in shown["notifications"][0]["message"]
    for known in ("users", "databases", "version", "uri", "components", "connection-pools"):
        assert shown[known] == before[known], known
    for port in (before["uri-params"]["port"], str(int(before["uri-params"]["port"]) + 1)):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(psycopg.conninfo.make_conninfo(dsn, port=port))
    assert not instance.processes(f"/nodes/{node(instance, name)}/")
    turn(instance, name, "stop")
    session = instance.run("service", "psql", name, check=False)
    assert session.returncode == 1 and f"pgherd service start {name}" in session.stderr

    for method, path, body in (
        ("PUT", "", {"plan": "startup-4"}),
        ("PUT", "", {"pg-settings": {"jit": False}}),
        ("POST", "/user", {"username": "u"}),
        ("POST", "/database", {"database-name": "d"}),
        ("DELETE", "/connection-pool/p", None),
    ):
        assert "is stopped" in refused(instance.call(method, f"/v2/dbaas-postgres/{name}{path}", body)), path
    done = instance.finished(client.update_dbaas_service_pg(name=name, ip_filter=["192.0.2.7/32"]))
    assert done["state"] == "success"
    assert client.get_dbaas_service_pg(name=name)["state"] == "poweroff"

    turn(instance, name, "start")
    assert client.get_dbaas_service_pg(name=name)["state"] == "running"
    assert client.get_dbaas_service_pg(name=name)["notifications"] == []
    assert instance.sql(name, "select i from kept") == [(7,)]
    assert "192.0.2.7" in (instance.home / "nodes" / node(instance, name) / "config/pg_hba.conf").read_text()
    through = psycopg.conninfo.make_conninfo(dsn, dbname="p", port=str(int(before["uri-params"]["port"]) + 1))
    with psycopg.connect(through) as connection:
        assert connection.execute("select i from kept").fetchone() == (7,)
    turn(instance, name, "start")
    instance.delete(name)


@pytest.mark.timeout(120)
def test_a_protected_service_is_not_stopped(instance: Instance) -> None:
    name = instance.create(termination_protection=True)
    answer = ask(instance, name, "stop")
    deleted = instance.call("DELETE", f"/v2/dbaas-service/{name}")
    assert (answer.status_code, answer.json()) == (403, deleted.json())
    assert "protected against termination and shutdown" in answer.json()["message"]
    assert ask(instance, "no-such-service", "stop").status_code == 404
    client = instance.client()
    unprotected = instance.finished(client.update_dbaas_service_pg(name=name, termination_protection=False))
    assert unprotected["state"] == "success", unprotected
    turn(instance, name, "stop")
    # A wish that no operation stands for any more comes true all the same.
    mine = f"name = '{name}' and deleted_at is null"
    metadata(instance, f"update service set stopped_at = null where {mine}")
    until(lambda: client.get_dbaas_service_pg(name=name)["state"] == "running", 60, "the reconciler starts it")
    turn(instance, name, "stop")
    instance.delete(name)
    assert instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 404


def node(instance: Instance, name: str) -> str:
    mine = f"service_id = (select id from service where name = '{name}' and deleted_at is null)"
    return metadata(instance, f"select id from node where {mine}")
