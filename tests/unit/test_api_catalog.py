"""Zones, types and settings schemas: valid after the contract, and as the clients need them."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.api import settings_schemas
from pgherd.api.app import Application
from pgherd.api.catalog import Catalog
from pgherd.contract.document import load_hosted
from pgherd.errors import Incorrect
from pgherd.model import features
from pgherd.model.pg_settings import GROUPS, NARROWER, SINCE
from pgherd.model.plan import PLANS
from pgherd.model.service import Change, Wish
from tests.plugins.wire import READER, KnownKeys, call, echo

HOSTED = load_hosted()
PG = HOSTED.schema("json-schema-pg")["properties"]


def app(versions: list[str]) -> Application:
    async def offered() -> list[str]:
        return versions

    catalog = Catalog(HOSTED, "ch-gva-2", "http://127.0.0.1:8450/v2", offered, "15")
    return Application([HOSTED], dict.fromkeys(HOSTED.routes, echo) | catalog.handlers(), KnownKeys(READER))


APP = app(["16", "15"])


@pytest.mark.parametrize(
    ("operation", "target"),
    [
        ("list-zones", "/v2/zone"),
        ("list-dbaas-service-types", "/v2/dbaas-service-type"),
        ("get-dbaas-service-type", "/v2/dbaas-service-type/pg"),
        ("get-dbaas-settings-pg", "/v2/dbaas-settings-pg"),
    ],
)
def test_answers_obey_the_contract(operation: str, target: str) -> None:
    answer = call(APP, "GET", target, key=READER)
    assert answer.status == 200
    assert HOSTED.routes[operation].answer.faults(answer.json) == []


def test_one_zone_with_our_own_endpoint() -> None:
    [zone] = call(APP, "GET", "/v2/zone", key=None).json["zones"]
    assert zone == {"name": "ch-gva-2", "api-endpoint": "http://127.0.0.1:8450/v2", "sos-endpoint": ""}


def test_type_pg() -> None:
    got = call(APP, "GET", "/v2/dbaas-service-type/pg", key=READER).json
    assert call(APP, "GET", "/v2/dbaas-service-type", key=READER).json == {"dbaas-service-types": [got]}
    assert (got["available-versions"], got["default-version"]) == (["15", "16"], "15")
    assert [plan["name"] for plan in got["plans"]] == list(PLANS)
    assert [plan["max-connections"] for plan in got["plans"]] == [plan.max_connections for plan in PLANS.values()]
    hobbyist = got["plans"][0]
    assert (hobbyist["node-memory"], hobbyist["disk-space"], hobbyist["node-cpu-count"]) == (2 << 30, 8 << 30, 2)
    assert hobbyist["backup-config"] == {"interval": 24, "max-count": 1, "recovery-mode": "pitr"}


def test_versions_are_those_that_a_request_may_name() -> None:
    """A host may have others than the contract's; and the default of the settings, if no host has it, is none."""
    got = call(app(["17", "9"]), "GET", "/v2/dbaas-service-type/pg", key=READER).json
    assert got["available-versions"] == ["17"] and "default-version" not in got


def test_plans_that_cannot_be_ordered_say_so() -> None:
    plans = call(APP, "GET", "/v2/dbaas-service-type/pg", key=READER).json["plans"]
    assert {plan["authorized"] for plan in plans if plan["node-count"] == 1} == {True}
    assert {plan["authorized"] for plan in plans if plan["node-count"] > 1} == {False}


def test_other_types() -> None:
    answer = call(APP, "GET", "/v2/dbaas-service-type/mysql", key=READER)
    assert (answer.status, "pg only" in answer.message) == (404, True)


def test_settings_schemas_have_what_the_clients_dereference() -> None:
    got = call(APP, "GET", "/v2/dbaas-settings-pg", key=READER).json["settings"]
    assert set(got) == {"pg", "pgbouncer", "pglookout", "timescaledb"}
    for schema in got.values():
        assert (schema["type"], schema["additionalProperties"]) == ("object", False)
        assert schema["title"]
        assert all(isinstance(inner["type"], str) for inner in schema["properties"].values())
    for schema in (inner for group in GROUPS for inner in got["pg"]["properties"][group]["properties"].values()):
        assert isinstance(schema["type"], str)
    assert got["pg"]["properties"]["autovacuum"]["properties"]["autovacuum_naptime"]["maximum"] == 86400


def served(versions: list[str]) -> dict[tuple[str, str], Any]:
    """Every key of every schema by its dotted name; keys of a group by their own."""
    got = call(app(versions), "GET", "/v2/dbaas-settings-pg", key=READER).json["settings"]
    found = {}
    for name, schema in got.items():
        for key, inner in schema["properties"].items():
            found |= {(name, k): s for k, s in inner.get("properties", {key: inner}).items()}
    return found


def probes(schema: dict[str, Any]) -> list[Any]:
    """Values that a schema lets through: its ends, and what lies between them closer to zero the closer."""
    if schema["type"] == "string":
        return schema.get("enum", ["postgres", "pg_x", "pgherd_x", "Mars/Base"])
    if schema["type"] == "boolean":
        return [True, False]
    low, high = schema["minimum"], schema["maximum"]
    return [low, high, *(n for n in (-1, 0, *(2**power for power in range(31))) if low <= n <= high)]


def refusals(key: tuple[str, str], value: Any) -> list[str]:
    """What the validator has against a value of a key, on the newest version."""
    schema, name = key
    group = next((g for g in GROUPS if name in PG[g]["properties"]), "")
    fields: dict[str, Any] = {f"{schema}_settings": {group: {name: value}} if group else {name: value}}
    try:
        features.check(Wish.draft(Change(plan="startup-225", variant="timescale", **fields), "18"))
    except Incorrect as error:
        return error.message.split("; ")
    return []


@pytest.mark.parametrize("key", served(["18"]))
def test_schemas_say_what_the_validator_refuses(key: tuple[str, str]) -> None:
    schema = served(["15", "18"])[key]
    if schema["type"] == "array":
        return
    for value in probes(schema):
        for refusal in refusals(key, value):
            _, _, allowed = refusal.partition(": must be ")
            assert allowed and allowed in schema["description"], (value, refusal)


def test_what_a_library_takes_is_the_bound_of_its_schema() -> None:
    for (field, name), (least, most) in features.BOUNDS.items():
        if schema := served(["18"]).get((field.removesuffix("-settings"), name)):
            assert (schema["minimum"], schema["maximum"]) == (least, most)


def test_keys_of_versions_that_no_host_has_stay_and_say_so() -> None:
    """Without the key a client would call a configuration wrong that is right as soon as a host has the version."""
    old, new = served(["15"]), served(["15", "18"])
    differing = {key[1] for key, schema in old.items() if schema != new[key]}
    assert old.keys() == new.keys()
    assert differing == {name for name, since in SINCE.items() if since > 15}
    assert all("No host" in old["pg", name]["description"] for name in differing)


def test_what_the_schemas_correct_is_in_the_contract() -> None:
    """What is not there any more, or right by now, need not be corrected."""
    contract = {name for _, name in served([])}
    corrected = {*settings_schemas._DEFAULTS, *settings_schemas._NOTES, *settings_schemas._MIXED_UP}
    assert corrected | set(settings_schemas._RELOADED_BY_18) | set(NARROWER) <= contract
    for name, default in settings_schemas._DEFAULTS.items():
        group = next(g for g in GROUPS if name in PG[g]["properties"])
        assert "The default is" in PG[group]["properties"][name]["description"]
        assert default not in PG[group]["properties"][name]["description"]
