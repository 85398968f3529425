"""Requests that schemathesis draws from the contract: every answer is one of the contract's, none is a 5xx."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import schemathesis
from exoscale_auth import ExoscaleV2Auth
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from tests.contract.answers import check, document
from tests.contract.test_wire import SERVED
from tests.plugins.instance import Instance, until

#: Drawn requests that may change something are few: an accepted one is carried out by a real PostgreSQL.
MODERATE = 40
FEW = 16
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


def draw(strategy: Any, count: int, look: Callable[[Any], None]) -> None:
    """Call `look` with `count` requests; the same ones in every run."""
    options = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @options
    @given(case=strategy)
    def run(case: Any) -> None:
        look(case)

    run()


def _close(schema: Any) -> None:
    """Allow no fields that a schema does not name, as the server does."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)


def _served() -> dict[str, Any]:
    """The document with the operations that this version serves, as strict about unknown fields as the server."""
    whole = copy.deepcopy(document())
    _close(whole)
    paths = {
        path: {method: item[method] for method in item if item[method].get("operationId") in SERVED}
        for path, item in whole["paths"].items()
    }
    paths = {path: item for path, item in paths.items() if item}
    for item in paths.values():
        for operation in item.values():
            # A refusal is documented for none of the operations, and is one for all.
            operation["responses"]["default"] = {"description": "A refusal"}
    return {**whole, "servers": [{"url": "/v2"}], "paths": paths}


SCHEMA = schemathesis.openapi.from_dict(_served())
OPERATIONS = {
    result.ok().definition.raw["operationId"]: result.ok()  # type: ignore[union-attr]
    for result in SCHEMA.get_all_operations()
}


@pytest.fixture(scope="module")
def target(instance: Instance, checked: None) -> Iterator[str]:
    """The service that is changed."""
    name = instance.create()
    yield name
    instance.client().delete_dbaas_service(name=name)


@pytest.fixture(autouse=True)
def nothing_left(instance: Instance) -> Iterator[None]:
    """Whatever a drawn request created is deleted again."""
    client = instance.client()
    before = {row["name"] for row in client.list_dbaas_services()["dbaas-services"]}
    yield
    for row in client.list_dbaas_services()["dbaas-services"]:
        if row["name"] not in before:
            if row["termination-protection"]:
                client.update_dbaas_service_pg(name=row["name"], termination_protection=False)
            client.delete_dbaas_service(name=row["name"])
    after = {row["name"] for row in client.list_dbaas_services()["dbaas-services"]}
    assert after <= before


def send(instance: Instance, case: Any) -> Any:
    """Send a drawn request with the operator's signature; its answer, checked."""
    with requests.Session() as session:
        session.hooks["response"].append(check)
        session.auth = ExoscaleV2Auth(*instance.key)
        return case.call_and_validate(base_url=instance.endpoint, session=session, checks=[not_a_server_error])


def test_all_operations_are_drawn() -> None:
    assert set(OPERATIONS) == SERVED


CHANGING = ("create-dbaas-service-pg", "update-dbaas-service-pg")


@pytest.mark.parametrize("operation_id", sorted(name for name in SERVED if name not in CHANGING))
def test_reads_and_deletes(instance: Instance, operation_id: str) -> None:
    operation = OPERATIONS[operation_id]
    if not operation.path_parameters:
        draw(operation.as_strategy(), 1, lambda case: send(instance, case))
        return
    draw(operation.as_strategy(), MODERATE, lambda case: send(instance, case))
    with contextlib.suppress(Unsatisfiable):  # for schemathesis any text is a name, whatever its length
        draw(operation.as_strategy(GenerationMode.NEGATIVE), MODERATE, lambda case: send(instance, case))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation_id", CHANGING)
def test_names_that_do_not_exist(instance: Instance, operation_id: str, mode: GenerationMode) -> None:
    """The name is drawn as well; hardly any of them is a service's."""
    draw(OPERATIONS[operation_id].as_strategy(mode), MODERATE, lambda case: send(instance, case))


def test_wrong_changes_change_nothing(instance: Instance, target: str) -> None:
    before = instance.client().get_dbaas_service_pg(name=target)
    operation = OPERATIONS["update-dbaas-service-pg"]

    def look(case: Any) -> None:
        answer = send(instance, case)
        assert 400 <= answer.status_code < 500, case.body

    draw(operation.as_strategy(GenerationMode.NEGATIVE, path_parameters={"name": target}), MODERATE * 2, look)
    assert instance.client().get_dbaas_service_pg(name=target) == before


#: Fields for which nearly every value that the document allows is refused.
REFUSED_FOR_NOW = (
    "maintenance", "migration", "synchronous-replication", "variant", "pglookout-settings",
    "timescaledb-settings", "pgaudit-settings", "version", "ip-filter",
)  # fmt: skip


def test_changes_that_the_contract_allows(instance: Instance, target: str) -> None:
    """What is accepted is also carried out: the service runs with it."""
    operation, accepted = OPERATIONS["update-dbaas-service-pg"], []

    def look(case: Any) -> None:
        case.body = {key: value for key, value in case.body.items() if key not in REFUSED_FOR_NOW}
        if "plan" in case.body:
            case.body["plan"] = ("hobbyist-2", "startup-4")[len(case.body["plan"]) % 2]
        answer = send(instance, case)
        if answer.status_code == 200:
            accepted.append((answer.json(), case.body))

    draw(operation.as_strategy(path_parameters={"name": target}), FEW, look)
    assert accepted, "at least one change is taken"
    client = instance.client()
    for operation_, body in accepted:
        done = instance.finished(operation_)
        assert done["state"] == "success", (done, body)
    if client.get_dbaas_service_pg(name=target)["termination-protection"]:
        client.update_dbaas_service_pg(name=target, termination_protection=False)
    until(lambda: client.get_dbaas_service_pg(name=target)["state"] == "running", 30, "the service runs")
    assert instance.sql(target, "select count(*) from pg_settings where pending_restart") == [(0,)]
