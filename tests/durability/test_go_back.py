"""An update that a host cannot bring into force leaves the service as it was."""

from __future__ import annotations

import pytest

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
    done = instance.finished(opened, 90)
    assert (done["state"], done["reason"]) == ("failure", "conflict")
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
