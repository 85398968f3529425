"""Checks every answer of a server against the OpenAPI document, by code that shares nothing with the server's own.

Strict where the real clients are: an integer is no `20.0`, a time ends in Z, a success is 200 with
`application/json`, a refusal is a 4xx with `{"message"}`.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import requests

METHODS = ("get", "put", "post", "delete")
#: What a time looks like that every client reads.
TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"
UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI document inside the `exoscale` package."""
    found: dict[str, Any] = json.loads((importlib.resources.files("exoscale") / "openapi.json").read_text())
    return found


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI 3.0 schema as JSON Schema draft 4; references stay."""
    kept = ("$ref", "type", "enum", "required", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    kept += ("minLength", "maxLength", "minItems", "maxItems")
    result = {key: schema[key] for key in kept if key in schema}
    if "properties" in schema:
        result["properties"] = {name: json_schema(value) for name, value in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            result[key] = json_schema(schema[key]) if isinstance(schema[key], dict) else schema[key]
    if schema.get("format") == "date-time":
        result["pattern"] = TIME
    if schema.get("format") == "uuid":
        result["pattern"] = UUID
    if schema.get("nullable"):
        result = {"anyOf": [result, {"type": "null"}]}
    return result


@functools.cache
def operations() -> list[tuple[str, re.Pattern[str], str, dict[str, Any]]]:
    """Method, path, operationId and response schema of everything about databases."""
    found = []
    for path, item in document()["paths"].items():
        if re.match(r"/(dbaas-|zone|operation)", path):
            pattern = re.compile("/v2" + re.sub(r"\{[^}]+\}", "[^/]+", path))
            for method in METHODS:
                if method in item:
                    answer = item[method]["responses"]["200"]["content"]["application/json"]["schema"]
                    found.append((method.upper(), pattern, item[method]["operationId"], answer))
    return found


@functools.cache
def _definitions() -> dict[str, Any]:
    found = {name: json_schema(schema) for name, schema in document()["components"]["schemas"].items()}
    # Clients want an empty text for a pool of every user; the document, which demands the field, forbids it.
    del found["dbaas-pg-pool-username"]["minLength"]
    return found


@functools.cache
def _validator(operation_id: str) -> jsonschema_rs.Draft4Validator:
    schema = next(answer for _, _, name, answer in operations() if name == operation_id)
    return jsonschema_rs.Draft4Validator({**json_schema(schema), "components": {"schemas": _definitions()}})


def operation_of(method: str, path: str) -> str | None:
    """The operationId of a request, None for one outside of the document."""
    return next((name for verb, form, name, _ in operations() if verb == method and form.fullmatch(path)), None)


def check(response: requests.Response, *args: Any, **kwargs: Any) -> None:
    """Fail unless the answer is one that the contract allows. Usable as a response hook of `requests`."""
    method, path = str(response.request.method), urlsplit(str(response.request.url)).path
    shown = f"{method} {path} -> {response.status_code} {response.text[:2000]}"
    assert response.headers.get("content-type") == "application/json", shown
    assert response.status_code == 200 or 400 <= response.status_code < 500, shown
    if method == "HEAD":
        return
    answer = response.json()
    if response.status_code != 200:
        assert isinstance(answer.get("message"), str) and answer["message"], shown
        assert set(answer) == {"message"}, shown
        return
    operation_id = operation_of(method, path)
    if operation_id is not None:
        faults = faults_of(operation_id, answer)
        assert not faults, f"{shown}\n{faults}"


def faults_of(operation_id: str, answer: Any) -> list[str]:
    """What is wrong with the answer of an operation."""
    found = [f"{error.instance_path}: {error.message}" for error in _validator(operation_id).iter_errors(answer)]
    if operation_id == "get-dbaas-service-pg":
        found += list(_untyped(answer))
    if operation_id == "list-dbaas-services":
        found += [line for service in answer["dbaas-services"] for line in _missing(service, _COMMON)]
    if answer.get("state") in ("failure", "timeout") and not answer.get("reason"):
        found.append("reason: the Python client reads it without looking")
    return found


#: What clients read without looking (wire.md), in the list and in the whole object.
_COMMON = (
    "name", "type", "plan", "state", "created-at", "updated-at", "termination-protection", "integrations", "zone",
    "disk-size", "node-count", "node-cpu-count", "node-memory", "notifications",
)  # fmt: skip
_WHOLE = (
    *_COMMON, "backup-schedule", "backups", "components", "connection-info", "connection-pools", "databases",
    "ip-filter", "maintenance", "max-connections", "node-states", "pg-settings", "prometheus-uri",
    "shared-buffers-percentage", "uri", "uri-params", "users", "version", "work-mem",
)  # fmt: skip


def _missing(service: dict[str, Any], needed: tuple[str, ...]) -> list[str]:
    return [f"{name}: is missing" for name in needed if name not in service]


def _untyped(service: dict[str, Any]) -> list[str]:
    """What the contract leaves open and the clients do not."""
    found = _missing(service, _WHOLE)
    params = [service.get("uri-params", {}), *service["connection-info"]["params"]]
    for row in params:
        found += [f"params.{key}: must be a string" for key, value in row.items() if not isinstance(value, str)]
        found += _missing(row, ("dbname", "host", "port", "sslmode", "user"))
    return found
