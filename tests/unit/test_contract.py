"""The contract: loaded from the package's document, every PostgreSQL operation validated."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pgherd.api.unavailable import concerns_postgres
from pgherd.contract.document import Contract, hosted_document, load, load_hosted, load_platform
from pgherd.contract.schema import Shape, draft4
from pgherd.errors import Fault, Incorrect

HOSTED = load_hosted()
DOCUMENT = json.loads(hosted_document())
POSTGRES = sorted(name for name, route in HOSTED.routes.items() if concerns_postgres(route))


def documented(operation_id: str) -> tuple[str, str, dict[str, Any]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if operation.get("operationId") == operation_id:
                return method.upper(), path, operation
    raise LookupError(operation_id)


def test_every_postgres_operation_of_the_document_is_a_route() -> None:
    wanted = {
        operation["operationId"]
        for path, item in DOCUMENT["paths"].items()
        for operation in item.values()
        if path.startswith(("/dbaas-postgres", "/dbaas-task", "/dbaas-integration", "/dbaas-migration-status"))
        or path in ("/zone", "/operation/{id}", "/dbaas-settings-pg", "/dbaas-ca-certificate")
        or path.split("/")[1] in ("dbaas-service", "dbaas-service-type", "dbaas-service-logs", "dbaas-service-metrics")
    }
    assert wanted == set(POSTGRES)


@pytest.mark.parametrize("name", POSTGRES)
def test_route_is_what_the_document_says(name: str) -> None:
    method, path, operation = documented(name)
    route = HOSTED.routes[name]
    assert (route.method, route.path) == (method, "/v2" + path)
    assert set(route.params) == {p["name"] for p in operation.get("parameters", [])}
    assert (route.body is not None) == ("requestBody" in operation)
    assert route.segments.count(None) == len(route.params)


@pytest.mark.parametrize("contract", [HOSTED, load_platform()])
def test_every_schema_compiles(contract: Contract) -> None:
    for route in contract.routes.values():
        route.param_shape.faults({})
        route.answer.faults({})
        route.closed_answer.faults({})
        if route.body:
            route.body.faults({})


def test_serving_does_not_import_the_client() -> None:
    code = "import sys, pgherd.contract.document as d; d.load_hosted(); assert 'exoscale' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def create(body: dict[str, Any]) -> str:
    shape = HOSTED.routes["create-dbaas-service-pg"].body
    assert shape
    return "; ".join(shape.faults(body))


@pytest.mark.parametrize(
    "body",
    [
        {"plan": "hobbyist-2"},
        {"plan": "x", "backup-schedule": {"backup-hour": None, "backup-minute": 59}},
        {"plan": "x", "pg-settings": {"password_encryption": None}},
        {"plan": "x", "pg-settings": {"autovacuum": {"autovacuum_vacuum_scale_factor": 1}, "jit": True}},
        {"plan": "x", "maintenance": {"dow": "never", "time": "00:00:00"}, "ip-filter": []},
        {"plan": "x", "admin-username": "a.b-c_D", "admin-password": "abc-_DEF9"},
        {"plan": "x", "pg-settings": {"bg-writer": {"bgwriter_lru_multiplier": 2.5}}},
        {"plan": "x", "integrations": [{"type": "read_replica", "settings": {"anything": 1}}]},
    ],
)
def test_bodies_of_real_clients_pass(body: dict[str, Any]) -> None:
    assert create(body) == ""


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("work-mem", 20.0, "work-mem: must be an integer from 1 to 1024"),
        ("work-mem", 1025, "work-mem: must be an integer from 1 to 1024"),
        ("work-mem", True, "work-mem: must be an integer from 1 to 1024"),
        ("work-mem", None, "work-mem: must be an integer from 1 to 1024"),
        ("work-mem", 2**70, "work-mem: must be an integer from 1 to 1024"),
        ("version", 15, "version: must be one of 13, 14, 15, 16, 17, 18"),
        ("termination-protection", "yes", "termination-protection: must be true or false"),
        ("ip-filter", ["a", 1], "ip-filter[1]: must be a string"),
        ("ip-filter", "0.0.0.0/0", "ip-filter: must be a list"),
        ("maintenance", {"dow": "monday"}, "maintenance.time: is required"),
        ("maintenance", {"dow": "monday", "time": "1:00"}, "maintenance.time: must be a string of 8 characters"),
        (
            "backup-schedule",
            {"backup-hour": 24},
            "backup-schedule.backup-hour: must be an integer from 0 to 23 or null",
        ),
        ("backup-schedule", {"hour": 1}, "backup-schedule.hour: is not known"),
        ("pg-settings", {"jit": "on"}, "pg-settings.jit: must be true or false"),
        ("pg-settings", {"shared_buffers": "1GB"}, "pg-settings.shared_buffers: is not known"),
        ("pg-settings", {"wal": {"fsync": False}}, "pg-settings.wal.fsync: is not known"),
        ("pg-settings", {"log_temp_files": 1.5}, "pg-settings.log_temp_files: must be an integer"),
        ("admin-username", "a'b", "admin-username: must be a string of 1 to 64 characters that matches"),
        ("admin-username", "a\n", "admin-username: must be a string of 1 to 64 characters that matches"),
        ("nonsense", 1, "nonsense: is not known; known are admin-password"),
    ],
)
def test_fault_names_field_and_what_is_allowed(field: str, value: object, said: str) -> None:
    assert create({"plan": "x", field: value}).startswith(said)


def test_all_faults_in_one_message_and_no_secret_in_it() -> None:
    message = create({"admin-password": "s3cret!", "work-mem": 0, "x\ny": 1})
    assert message.count(";") >= 3
    assert "plan: is required" in message
    assert "work-mem" in message
    assert "'x\\ny': is not known" in message
    assert "s3cret" not in message


def test_number_of_faults_in_a_message_is_bounded() -> None:
    route = HOSTED.routes["create-dbaas-service-pg"]
    assert route.body
    with pytest.raises(Incorrect, match=r"and 981 more$"):
        route.body.check({"plan": "x"} | {f"field{n}": n for n in range(1001)})


def test_uuid_parameter() -> None:
    shape = HOSTED.routes["get-operation"].param_shape
    assert shape.faults({"id": "b38fbd5e-8d5a-4b8b-a5d3-76e4f0b6e5d3"}) == []
    for wrong in ("", "77", "b38fbd5e8d5a4b8ba5d376e4f0b6e5d3", "b38fbd5e-8d5a-4b8b-a5d3-76e4f0b6e5d3\n"):
        assert shape.faults({"id": wrong}) == ["id: must be a UUID"]


def test_draft4_of_openapi_words() -> None:
    got = draft4({"type": "integer", "minimum": 0, "exclusiveMinimum": True, "nullable": True, "example": 1})
    assert got == {"type": ["integer", "null"], "minimum": 0, "exclusiveMinimum": True, "maximum": 2**63 - 1}
    assert Shape(lambda: {"type": "integer", "minimum": 0, "exclusiveMinimum": True}).faults(0) == [
        "body: must be an integer above 0"
    ]


def test_property_named_like_a_keyword_survives() -> None:
    shape = Shape(
        lambda: {"type": "object", "properties": {"title": {"type": "string"}, "example": {"type": "string"}}}
    )
    assert shape.faults({"title": 1}) == ["title: must be a string"]


def test_answers_are_checked_strictly() -> None:
    shape = HOSTED.routes["get-dbaas-service-pg"].closed_answer
    whole = {"name": "a", "plan": "b", "type": "pg", "prometheus-uri": {}}
    assert shape.faults(whole) == []
    assert shape.faults(whole | {"node-memory": 2.0, "max-connections": 0, "created-at": "2026-01-01 10:00"}) != []
    assert shape.faults(whole | {"surprise": 1}) != []


def test_schema_that_contains_itself_is_refused() -> None:
    document = json.dumps(
        {
            "paths": {
                "/a": {
                    "get": {
                        "operationId": "a",
                        "responses": {
                            "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/s"}}}}
                        },
                    }
                }
            },
            "components": {
                "schemas": {"s": {"type": "object", "properties": {"s": {"$ref": "#/components/schemas/s"}}}}
            },
        }
    )
    with pytest.raises(Fault, match="contains itself"):
        load(document.encode(), "/x").routes["a"].answer.faults({})
