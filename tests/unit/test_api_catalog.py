"""Zones, types and settings schemas: valid after the contract, and as the clients need them."""

from __future__ import annotations

import pytest

from pgherd.api.app import Application
from pgherd.api.catalog import Catalog
from pgherd.contract.document import load_hosted
from pgherd.model.plan import PLANS
from tests.plugins.wire import READER, KnownKeys, call, echo

HOSTED = load_hosted()


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
    assert got["pg"]["properties"]["autovacuum"]["properties"]["autovacuum_naptime"]["maximum"] == 86400
