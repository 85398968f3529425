"""Variant, audit log and their settings, as a user sees them through the API."""

from __future__ import annotations

from typing import Any

import pytest
from exoscale.api.exceptions import ExoscaleAPIClientException

from pgherd.model import features
from tests.plugins.instance import Instance

WORKERS = ("timescaledb-settings", "max_background_workers")
SIZE = ("pgaudit-settings", "log_parameter_max_size")


def _updated(instance: Instance, name: str, **fields: Any) -> None:
    done = instance.finished(instance.client().update_dbaas_service_pg(name=name, **fields))
    assert done["state"] == "success", done


def _refused(instance: Instance, name: str, **fields: Any) -> str:
    with pytest.raises(ExoscaleAPIClientException) as caught:
        instance.client().update_dbaas_service_pg(name=name, **fields)
    return str(caught.value.response.json()["message"])


def test_a_service_becomes_one_of_variant_timescale_and_stays_it(instance: Instance) -> None:
    name = instance.create(version="18")
    early = _refused(instance, name, timescaledb_settings={"max_background_workers": 4})
    assert early == "timescaledb-settings: only a service of variant timescale has them"
    _updated(instance, name, variant="timescale", timescaledb_settings={"max_background_workers": 4})
    assert instance.client().get_dbaas_service_pg(name=name)["timescaledb-settings"] == {"max_background_workers": 4}
    instance.sql(name, "create table m (at timestamptz not null)")
    assert instance.sql(name, "select created from create_hypertable('m', 'at')") == [(True,)]
    assert instance.sql(name, "show timescaledb.max_background_workers") == [("4",)]
    limits = dict(features.BOUNDS)
    (_, workers), (_, size) = limits.pop(WORKERS), limits.pop(SIZE)
    assert not limits, "each of them is tried here"
    for over in ({"timescaledb_settings": {WORKERS[1]: workers + 1}}, {"pgaudit_settings": {SIZE[1]: size + 1}}):
        assert "must be an integer from" in _refused(instance, name, **over)
    most = {"timescaledb_settings": {WORKERS[1]: workers}, "pgaudit_settings": {"feature_enabled": True, SIZE[1]: size}}
    _updated(instance, name, **most)
    shown = "select setting::bigint from pg_settings where name ~ '(log_parameter_max_size|max_background_workers)$'"
    assert instance.sql(name, f"{shown} order by name") == [(size,), (workers,)]
    assert instance.sql(name, "show max_worker_processes") == [("136",)]
    _updated(instance, name, work_mem=5)
    assert instance.sql(name, "select count(*) from show_chunks('m')") == [(0,)], "another update leaves it"
    assert _refused(instance, name, variant="aiven").startswith("variant: a service of variant timescale stays one")
    instance.delete(name)


def test_the_audit_log_keeps_its_settings_while_it_is_off(instance: Instance) -> None:
    name = instance.create()
    client = instance.client()
    _updated(instance, name, pgaudit_settings={"log": ["ddl", "write"], "log_rows": True})
    assert instance.sql(name, "show pgaudit.log") == [("none",)]
    _updated(instance, name, pgaudit_settings={"feature_enabled": True})
    assert instance.sql(name, "show pgaudit.log") == [("ddl,write",)]
    assert instance.sql(name, "select 1 from pg_extension where extname = 'pgaudit'") == [(1,)]
    assert _refused(instance, name, variant="timescale").endswith("; a new service can have it with version 17 or 18")
    refusal = _refused(instance, name, pgaudit_settings={"log_max_string_length": 10})
    assert refusal.startswith("pgaudit-settings.log_max_string_length: must be -1")
    _updated(instance, name, pgaudit_settings={"feature_enabled": False, "log": []})
    assert instance.sql(name, "show pgaudit.log") == [("none",)]
    assert instance.sql(name, "select 1 from pg_extension where extname = 'pgaudit'") == []
    kept = {"feature_enabled": False, "log": [], "log_rows": True}
    assert client.get_dbaas_service_pg(name=name)["pgaudit-settings"] == kept
    instance.delete(name)


def test_what_only_several_nodes_can_do_is_refused_on_one(instance: Instance) -> None:
    name = instance.create(pglookout_settings={"max_failover_replication_time_lag": 30})
    refusal = _refused(instance, name, synchronous_replication="quorum", variant="aiven")
    assert refusal.startswith("synchronous-replication: must be off on plan hobbyist-2")
    lag = {"max_failover_replication_time_lag": 10}
    _updated(instance, name, synchronous_replication="off", pglookout_settings=lag)
    shown = instance.client().get_dbaas_service_pg(name=name)
    assert (shown["synchronous-replication"], shown["pglookout-settings"]) == ("off", lag)
    instance.delete(name)


def test_settings_with_which_postgresql_does_not_start_are_taken_back(instance: Instance) -> None:
    """Only a start shows that slots would not fit any more."""
    name = instance.create(version="18", pg_settings={"jit": False})
    client = instance.client()
    client.update_dbaas_postgres_allow_replication(service_name=name, username="avnadmin", allow_replication=True)
    for number in range(9):
        instance.sql(name, f"select pg_create_logical_replication_slot('s{number}', 'pgoutput')")
    done = instance.finished(
        client.update_dbaas_service_pg(name=name, pg_settings={"max_replication_slots": 8, "log_temp_files": 9}), 120
    )
    assert (done["state"], done["reason"]) == ("failure", "conflict")
    assert "too many replication slots active before shutdown" in done["message"]
    assert client.get_dbaas_service_pg(name=name)["pg-settings"] == {"jit": False}
    shown = "select current_setting('max_replication_slots'), current_setting('log_temp_files'), current_setting('jit')"
    assert instance.sql(name, shown) == [("20", "-1", "off")]
    instance.delete(name)
