"""Every key of pg-settings: set through the API and read back from PostgreSQL, and refused with all faults at once.

The keys are the contract's at run time, so that one that comes later fails here until it is handled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from exoscale.api.exceptions import ExoscaleAPIClientException

from pgherd.model.pg_settings import SINCE
from tests.contract.answers import document
from tests.contract.test_every_field import Running
from tests.plugins.instance import Instance

GROUPS = ("autovacuum", "bg-writer", "wal")
#: Key -> a legal value that is not the default, and what PostgreSQL shows for it.
VALUES: dict[str, tuple[Any, str]] = {
    "autovacuum.autovacuum_analyze_scale_factor": (0.2, "0.2"),
    "autovacuum.autovacuum_analyze_threshold": (51, "51"),
    "autovacuum.autovacuum_freeze_max_age": (300000000, "300000000"),
    "autovacuum.autovacuum_max_workers": (17, "17"),
    "autovacuum.autovacuum_naptime": (61, "61s"),
    "autovacuum.autovacuum_vacuum_cost_delay": (3, "3ms"),
    "autovacuum.autovacuum_vacuum_cost_limit": (201, "201"),
    "autovacuum.autovacuum_vacuum_scale_factor": (0.3, "0.3"),
    "autovacuum.autovacuum_vacuum_threshold": (52, "52"),
    "autovacuum.log_autovacuum_min_duration": (1001, "1001ms"),
    "bg-writer.bgwriter_delay": (210, "210ms"),
    "bg-writer.bgwriter_flush_after": (256, "256kB"),
    "bg-writer.bgwriter_lru_maxpages": (101, "101"),
    "bg-writer.bgwriter_lru_multiplier": (2.5, "2.5"),
    "deadlock_timeout": (1100, "1100ms"),
    "default_toast_compression": ("pglz", "pglz"),
    "idle_in_transaction_session_timeout": (60001, "60001ms"),
    "io_combine_limit": (8, "64kB"),
    "io_max_combine_limit": (32, "256kB"),
    "io_max_concurrency": (33, "33"),
    "io_method": ("sync", "sync"),
    "io_workers": (5, "5"),
    "jit": (False, "off"),
    "log_error_verbosity": ("TERSE", "terse"),
    "log_line_prefix": ("'pid=%p,user=%u,db=%d,app=%a,client=%h '", "pid=%p,user=%u,db=%d,app=%a,client=%h "),
    "log_min_duration_statement": (86399999, "86399999ms"),
    "log_temp_files": (11, "11kB"),
    "max_files_per_process": (1100, "1100"),
    "max_locks_per_transaction": (65, "65"),
    "max_logical_replication_workers": (5, "5"),
    "max_parallel_workers": (7, "7"),
    "max_parallel_workers_per_gather": (3, "3"),
    "max_pred_locks_per_transaction": (66, "66"),
    "max_prepared_transactions": (4, "4"),
    "max_replication_slots": (21, "21"),
    "max_stack_depth": (3145728, "3MB"),
    "max_standby_archive_delay": (30001, "30001ms"),
    "max_standby_streaming_delay": (30002, "30002ms"),
    "max_sync_workers_per_subscription": (3, "3"),
    "max_worker_processes": (12, "12"),
    "password_encryption": ("md5", "md5"),
    "pg_partman_bgw.interval": (3700, "3700"),
    "pg_partman_bgw.role": ("keeper", "keeper"),
    "pg_stat_monitor.pgsm_enable_query_plan": (True, "on"),
    "pg_stat_monitor.pgsm_max_buckets": (9, "9"),
    "pg_stat_statements.track": ("all", "all"),
    "temp_file_limit": (5000001, "5000001kB"),
    "timezone": ("Asia/Kathmandu", "Asia/Kathmandu"),
    "track_activity_query_size": (2000, "2000B"),
    "track_commit_timestamp": ("on", "on"),
    "track_functions": ("pl", "pl"),
    "track_io_timing": ("on", "on"),
    "wal.max_slot_wal_keep_size": (1025, "1025MB"),
    "wal.max_wal_senders": (22, "22"),
    "wal.wal_sender_timeout": (61000, "61s"),
    "wal.wal_writer_delay": (190, "190ms"),
}


def leaves(properties: dict[str, Any], before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key with its schema; those of a group after the group's name."""
    for name, schema in properties.items():
        if "properties" in schema:
            yield from leaves(schema["properties"], f"{name}.")
        else:
            yield before + name, schema


KEYS = dict(leaves(document()["components"]["schemas"]["json-schema-pg"]["properties"]))


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Keys as the contract nests them."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        if group in GROUPS:
            result.setdefault(group, {})[name] = value
        else:
            result[key] = value
    return result


def shown(running: Running) -> dict[str, str]:
    """PostgreSQL's parameters as the admin sees them, by lower-case name; those of libraries that are missing too."""
    asked = ", ".join(f"('{parameter(key)}')" for key in KEYS if key.startswith("pg_"))
    query = (
        f"SELECT lower(name), current_setting(name, true) FROM (SELECT name FROM pg_settings UNION VALUES {asked}) n"
    )
    return {name: value for name, value in running.instance.sql(running.name, query) if value is not None}


def parameter(key: str) -> str:
    """The parameter of a key."""
    group, _, name = key.partition(".")
    return name if group in GROUPS else key


@pytest.fixture(scope="module")
def before_and_after(instance: Instance, checked: None) -> Iterator[tuple[dict[str, str], dict[str, str], Running]]:
    """What PostgreSQL 18 shows before and after one update with every key."""
    name = instance.create(version="18")
    before = shown(Running(instance, name, {}))
    sent = nested({key: value for key, (value, _) in VALUES.items()})
    done = instance.finished(instance.client().update_dbaas_service_pg(name=name, pg_settings=sent))
    assert done["state"] == "success", done
    running = Running(instance, name, sent)
    yield before, shown(running), running
    instance.delete(name)


def untrue(instance: Instance, name: str) -> list[str]:
    """What the catalog says of defaults and restarts and a new service does otherwise."""
    query = "select lower(name), setting, unit, context from pg_settings"
    found = {row[0]: row[1:] for row in instance.sql(name, query)}
    version = int(instance.client().get_dbaas_service_pg(name=name)["version"].split(".")[0])
    schemas = dict(leaves(instance.client().get_dbaas_settings_pg()["settings"]["pg"]["properties"]))
    faults = []
    for key, schema in schemas.items():
        if key.startswith("pg_") or parameter(key) not in found:
            continue  # a library's that is not loaded, or a newer version's
        setting, unit, context = found[parameter(key)]
        said = re.search(r"default is `(.*?)`", schema["description"])
        wanted = [str(schema["default"])] if schema.get("default", -1) != -1 else []
        wanted += [said[1].removesuffix(".0")] if said else []
        many = {"max_stack_depth": 1024, "bg-writer.bgwriter_flush_after": 8}.get(key)  # units of the contract's own
        setting = str(int(setting) * many) if many else setting
        faults += [f"{key}: the default is {setting} {unit}, not {default}" for default in wanted if default != setting]
        restarts = re.search(r"causes a service restart(?: before PostgreSQL (\d+))?\.", schema["description"])
        if (bool(restarts) and version < int(restarts[1] or 99)) != (context == "postmaster"):
            faults.append(f"{key}: changes in context {context}")
    return faults


@pytest.mark.parametrize("version", ["15", "18"])
def test_what_the_catalog_says_is_true(instance: Instance, version: str) -> None:
    """And on 15, whose keys `before_and_after` has not, every key that there is takes its value."""
    name = instance.create(version=version)
    assert untrue(instance, name) == []
    if version == "15":
        there = {key: value for key, value in VALUES.items() if SINCE.get(parameter(key), 0) <= 15}
        sent = nested({key: value for key, (value, _) in there.items()})
        done = instance.finished(instance.client().update_dbaas_service_pg(name=name, pg_settings=sent))
        assert done["state"] == "success", done
        after = shown(Running(instance, name, sent))
        assert {key: after[parameter(key)] for key in there} == {key: value for key, (_, value) in there.items()}
    instance.delete(name)


def test_every_key_of_the_contract_is_here() -> None:
    assert set(KEYS) == set(VALUES)


@pytest.mark.parametrize("key", VALUES)
def test_it_is_in_force(before_and_after: tuple[dict[str, str], dict[str, str], Running], key: str) -> None:
    before, after, _ = before_and_after
    assert after[parameter(key)] == VALUES[key][1]
    assert before.get(parameter(key)) != VALUES[key][1], "its default proves nothing"


def test_types_and_values_come_back_as_sent(
    before_and_after: tuple[dict[str, str], dict[str, str], Running],
) -> None:
    running = before_and_after[2]
    assert json.dumps(running.shown["pg-settings"], sort_keys=True) == json.dumps(running.sent, sort_keys=True)


def test_a_password_that_is_set_in_sql_as_md5_lets_nobody_in(
    before_and_after: tuple[dict[str, str], dict[str, str], Running],
) -> None:
    """As docs/settings.md says of password_encryption md5, which is in force here."""
    running = before_and_after[2]
    running.instance.sql(running.name, "create role old_way login password 'opens-nothing'")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        running.instance.sql(running.name, "select 1", user="old_way", password="opens-nothing")
    running.instance.sql(
        running.name, "set password_encryption = 'scram-sha-256'; alter role old_way password 'opens-it'"
    )
    assert running.instance.sql(running.name, "select 1", user="old_way", password="opens-it") == [(1,)]
    running.instance.sql(running.name, "drop role old_way")


def test_sent_keys_merge_and_others_stay(
    before_and_after: tuple[dict[str, str], dict[str, str], Running],
) -> None:
    before, after, running = before_and_after
    change = {"jit": True, "password_encryption": None, "wal": {"wal_writer_delay": 180}}
    client = running.instance.client()
    running.instance.finished(client.update_dbaas_service_pg(name=running.name, pg_settings=change))
    wanted = after | {"jit": "on", "wal_writer_delay": "180ms", "password_encryption": before["password_encryption"]}
    now = shown(Running(running.instance, running.name, {}))
    own = {name for name in now if name.startswith("pgherd.")}
    assert {n: v for n, v in now.items() if n not in own} == {n: v for n, v in wanted.items() if n not in own}
    settings = client.get_dbaas_service_pg(name=running.name)["pg-settings"]
    assert settings["wal"] == running.sent["wal"] | {"wal_writer_delay": 180}
    assert "password_encryption" not in settings


def wrong(schema: dict[str, Any]) -> Iterator[Any]:
    """Values that break a schema, each in one way."""
    kind = schema["type"]
    if "enum" in schema:
        yield "no such word"
    elif kind in ("integer", "number"):
        yield from (schema["minimum"] - 1, schema["maximum"] + 1)
    elif kind == "string":
        yield from (";", "x" * (schema["maxLength"] + 1))
    yield {"boolean": "on", "integer": 1.5, "number": "1", "string": 1}[kind]


def refusal(instance: Instance, name: str, settings: dict[str, Any]) -> list[str]:
    """The faults that the refusal of an update lists."""
    with pytest.raises(ExoscaleAPIClientException) as caught:
        instance.client().update_dbaas_service_pg(name=name, pg_settings=settings)
    return split(caught.value.response.json()["message"])


def split(message: str) -> list[str]:
    """The single faults of a message."""
    return re.split("; (?=pg-settings)", message)


@pytest.mark.parametrize("key", KEYS)
def test_what_breaks_its_bounds_is_refused(
    before_and_after: tuple[dict[str, str], dict[str, str], Running], key: str
) -> None:
    running = before_and_after[2]
    for value in wrong(KEYS[key]):
        faults = refusal(running.instance, running.name, nested({key: value}))
        assert len(faults) == 1 and faults[0].startswith(f"pg-settings.{key}: must be "), faults


def test_one_message_lists_all_faults(instance: Instance, before_and_after: object) -> None:
    bad = {
        "no_such_key": 1, "jit": "on", "max_worker_processes": 7, "track_functions": "some", "timezone": "a b",
        "wal": {"max_wal_senders": 1, "unknown": 1}, "io_workers": 4, "io_method": "none",
    }  # fmt: skip
    expected = {
        "pg-settings.no_such_key: is not known", "pg-settings.jit: must be true or false",
        "pg-settings.max_worker_processes: must be an integer from 8 to 288",
        "pg-settings.track_functions: must be one of all, none, pl",
        "pg-settings.timezone: must be a string of 0 to 64 characters that matches",
        "pg-settings.wal.max_wal_senders: must be an integer from 20 to 256", "pg-settings.wal.unknown: is not known",
        "pg-settings.io_method: must be one of io_uring, sync, worker",
        "pg-settings.io_workers: needs PostgreSQL 18 or newer", "pg-settings.io_method: needs PostgreSQL 18 or newer",
    }  # fmt: skip
    name = instance.create(version="15")
    on_create = instance.call(
        "POST", "/v2/dbaas-postgres/never", {"plan": "hobbyist-2", "version": "15", "pg-settings": bad}
    )
    assert on_create.status_code == 400
    for faults in (split(on_create.json()["message"]), refusal(instance, name, bad)):
        assert len(faults) == len(expected), faults
        assert {next((start for start in expected if fault.startswith(start)), fault) for fault in faults} == expected
    valid = {"io_workers": 4, "wal": {"wal_sender_timeout": 1}, "timezone": "Mars/Olympus"}
    assert len(refusal(instance, name, valid)) == 3
    instance.delete(name)
