"""pg-settings: from the contract's groups and units to PostgreSQL's parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.contract.document import load_hosted
from pgherd.errors import Incorrect
from pgherd.model.pg_settings import GROUPS, SINCE, flatten, merge
from pgherd.model.plan import PLANS

SCHEMA = load_hosted().schema("json-schema-pg")["properties"]
LEAVES = {name: schema for name, schema in SCHEMA.items() if schema["type"] != "object"} | {
    name: schema for group in GROUPS for name, schema in SCHEMA[group]["properties"].items()
}


def some_value(name: str, schema: dict[str, Any]) -> Any:
    if name == "timezone":
        return "Europe/Zurich"
    if "enum" in schema:
        return schema["enum"][-1]
    return {"integer": schema.get("maximum"), "number": 0.5, "boolean": True, "string": "role"}[schema["type"]]


def test_groups_are_those_of_the_contract() -> None:
    assert {name for name, schema in SCHEMA.items() if schema["type"] == "object"} == set(GROUPS)


def test_every_key_becomes_a_parameter() -> None:
    values: dict[str, Any] = {name: some_value(name, LEAVES[name]) for name in SCHEMA if name not in GROUPS}
    for group in GROUPS:
        inner = SCHEMA[group]["properties"]
        values[group] = {name: some_value(name, schema) for name, schema in inner.items()}
    flat = flatten(values, 18)
    assert set(flat) == set(LEAVES)
    assert not any(isinstance(value, dict | list) for value in flat.values())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"jit": False}, {"jit": False}),
        ({"pg_stat_statements.track": "all"}, {"pg_stat_statements.track": "all"}),
        ({"bg-writer": {"bgwriter_flush_after": 512}}, {"bgwriter_flush_after": "512kB"}),
        ({"bg-writer": {"bgwriter_flush_after": 1}}, {"bgwriter_flush_after": "8kB"}),
        ({"bg-writer": {"bgwriter_flush_after": 0}}, {"bgwriter_flush_after": "0kB"}),
        ({"max_stack_depth": 2097152}, {"max_stack_depth": "2048kB"}),
        ({"temp_file_limit": -1}, {"temp_file_limit": -1}),
        ({"wal": {"max_slot_wal_keep_size": 100}}, {"max_slot_wal_keep_size": 100}),
        ({"wal": {"wal_sender_timeout": 0}}, {"wal_sender_timeout": 0}),
        ({"wal": {"wal_sender_timeout": 5000}}, {"wal_sender_timeout": 5000}),
        (
            {"log_line_prefix": "'%m [%p] %q[user=%u,db=%d,app=%a] '"},
            {"log_line_prefix": "%m [%p] %q[user=%u,db=%d,app=%a] "},
        ),
        ({"password_encryption": None}, {}),
        ({"autovacuum": {"autovacuum_max_workers": 20}}, {"autovacuum_max_workers": 20}),
    ],
)
def test_flatten(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    flat = flatten(settings, 15)
    assert flat == expected
    assert [type(value) for value in flat.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize("name", sorted(SINCE))
def test_parameters_of_newer_versions(name: str) -> None:
    value = some_value(name, LEAVES[name])
    assert flatten({name: value}, SINCE[name]) == {name: value}
    with pytest.raises(Incorrect, match=f"pg-settings.{name}: needs PostgreSQL {SINCE[name]} or newer"):
        flatten({name: value}, SINCE[name] - 1)


def test_since_agrees_with_the_contract() -> None:
    told = {name for name, schema in LEAVES.items() if "Version 1" in schema.get("description", "")}
    assert told <= set(SINCE)


def test_all_faults_in_one_message() -> None:
    with pytest.raises(Incorrect) as caught:
        flatten({"timezone": "Mars/Base", "io_workers": 3, "wal": {"wal_sender_timeout": 10}}, 15)
    for said in ("pg-settings.timezone: ", "pg-settings.io_workers: ", "pg-settings.wal.wal_sender_timeout: "):
        assert said in caught.value.message


@pytest.mark.parametrize("zone", ["", "Europe", "europe/zurich ", "posixrules", "../../etc/passwd", "localtime"])
def test_unknown_time_zones(zone: str) -> None:
    with pytest.raises(Incorrect, match="time zone"):
        flatten({"timezone": zone}, 15)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Helsinki", "America/Argentina/Buenos_Aires"])
def test_time_zones(zone: str) -> None:
    assert flatten({"timezone": zone}, 15) == {"timezone": zone}


def test_lock_tables_that_do_not_fit_the_plan() -> None:
    greedy = {"max_prepared_transactions": 10000, "max_locks_per_transaction": 6400}
    assert flatten(greedy, 15)
    with pytest.raises(Incorrect, match="lock tables; plan hobbyist-2 has 512 MiB"):
        flatten(greedy, 15, PLANS["hobbyist-2"])
    for one in (greedy | {"max_prepared_transactions": 0}, greedy | {"max_locks_per_transaction": 64}):
        assert flatten(one, 15, PLANS["hobbyist-2"])


scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
keys = st.sampled_from(["jit", "timezone", "wal", "autovacuum", "bg-writer"])
settings = st.dictionaries(keys, scalars | st.dictionaries(st.sampled_from("abc"), scalars, max_size=3), max_size=5)


@given(settings, settings)
def test_merge_keeps_what_was_not_sent_and_takes_what_was(old: dict[str, Any], sent: dict[str, Any]) -> None:
    before = repr(old)
    merged = merge(old, sent)
    assert repr(old) == before
    assert set(merged) == set(old) | set(sent)
    for key, value in merged.items():
        if isinstance(sent.get(key), dict):
            for name, inner in sent[key].items():
                assert value[name] is inner
            if isinstance(old.get(key), dict):
                assert set(value) == set(old[key]) | set(sent[key])
        else:
            assert value is (sent[key] if key in sent else old[key])
    assert repr(merge(merged, sent)) == repr(merged)


def test_null_takes_a_key_back_to_its_default() -> None:
    assert merge({"password_encryption": "md5", "jit": True}, {"password_encryption": None}) == {"jit": True}
    assert merge({}, {"password_encryption": None}) == {}
