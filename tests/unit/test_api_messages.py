"""Every field of every body: a wrong value is answered with a 4xx that names the field and what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pgherd.api.unavailable import concerns_postgres
from pgherd.contract.document import load_hosted
from tests.contract.answers import document
from tests.plugins.wire import call, echoing

HOSTED = load_hosted()
APP = echoing(HOSTED)
ID = "6a0f4dd5-67ae-4b11-a4d5-0b0a57a0c6a1"


def expanded(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of the document with its own reference filled in."""
    while "$ref" in schema:
        schema = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def bodies() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """operationId, method and body schema of what concerns PostgreSQL."""
    for item in document()["paths"].values():
        for method, operation in item.items():
            route = HOSTED.routes.get(operation.get("operationId", "")) if isinstance(operation, dict) else None
            if route and concerns_postgres(route) and "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                yield route.operation_id, method.upper(), expanded(schema)


def fields(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Path and type of every field, those in groups too."""
    for name, inner in schema.get("properties", {}).items():
        found = expanded(inner)
        yield (*path, name), found["type"]
        yield from fields(found, (*path, name))


def nested(path: tuple[str, ...], value: Any) -> Any:
    return {path[0]: nested(path[1:], value)} if path else value


#: Values that no field of the type takes.
WRONG: dict[str, list[Any]] = {
    "string": [5, [], {}, True, "\u0001" * 5000],
    "integer": ["5", 2.5, [], True, 10**30],
    "number": ["5", [], True],
    "boolean": ["true", 1, []],
    "array": ["x", {}, 5],
    "object": ["x", [], 5],
}


@pytest.mark.parametrize(("operation", "method", "schema"), list(bodies()), ids=[name for name, *_ in bodies()])
def test_wrong_values_are_named(operation: str, method: str, schema: dict[str, Any]) -> None:
    target = re.sub(r"\{([^}]+)\}", lambda found: ID if found[1] == "id" else "abc", HOSTED.routes[operation].path)
    for path, kind in fields(schema):
        for value in WRONG[kind]:
            answer = call(APP, method, target, json.dumps(nested(path, value)).encode())
            said = f"{operation} {path} {str(value)[:20]!r}: {answer.status} {answer.body[:300]!r}"
            message = answer.json.get("message", "")
            faults = [part for part in message.split("; ") if part and not part.endswith(": is required")]
            if isinstance(value, str) and kind == "string" and not faults:
                continue  # a text without a bound or a pattern
            assert answer.status == 400, said
            assert any(re.match(rf"{re.escape('.'.join(path))}(\[\d+\])?: must be ", part) for part in faults), said
            assert len(message) < 1500 and "\u0001" not in message, said
