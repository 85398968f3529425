"""Loads an OpenAPI 3.0 document into a `Contract`: routes by operationId, with what they take and give.

The document of the hosted service is over 1 MB and lies in the `exoscale` package, which is read as a
file and never imported. Only the operations that are asked for and the schemas that they name are kept,
as bytes; validators are compiled from them when first used.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pgherd.contract.schema import Schemas, Shape, closed
from pgherd.errors import Fault

METHODS = frozenset({"get", "put", "post", "delete", "patch"})


class _Parameter(msgspec.Struct):
    name: str
    location: str = msgspec.field(name="in")
    schema: dict[str, Any] = {}


class _Operation(msgspec.Struct):
    operation_id: str = msgspec.field(name="operationId")
    parameters: list[_Parameter] = []
    request: msgspec.Raw = msgspec.field(name="requestBody", default=msgspec.Raw(b"null"))
    responses: msgspec.Raw = msgspec.Raw(b"{}")


class _Components(msgspec.Struct):
    schemas: dict[str, msgspec.Raw] = {}


class _Document(msgspec.Struct):
    paths: dict[str, dict[str, msgspec.Raw]]
    components: _Components = msgspec.field(default_factory=_Components)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One operation: where it is reached, what it takes and what it answers.

    `segments` are the parts of the path under the document's prefix; a None stands for a parameter,
    whose names are `params` in order. `body` is None when the operation takes no body.
    """

    operation_id: str
    method: str
    path: str
    segments: tuple[str | None, ...]
    params: tuple[str, ...]
    param_shape: Shape
    body: Shape | None
    answer: Shape
    closed_answer: Shape


class Contract:
    """The routes of one document under a prefix such as `/v2`, and its named schemas."""

    def __init__(self, prefix: str, routes: Iterable[Route], schemas: Schemas) -> None:
        self.prefix = prefix
        self.routes: Mapping[str, Route] = {route.operation_id: route for route in routes}
        self._schemas = schemas

    def schema(self, name: str) -> dict[str, Any]:
        """A named schema of the document, its references filled in. Raises KeyError."""
        return self._schemas.expanded({"$ref": f"#/components/schemas/{name}"})


def hosted_document() -> bytes:
    """The OpenAPI document of the installed `exoscale` package. Raises Fault when it is missing."""
    found = importlib.util.find_spec("exoscale")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / "openapi.json"
        if path.is_file():
            return path.read_bytes()
    raise Fault("The API's contract is missing.", detail="no openapi.json in an installed package `exoscale`")


def load_hosted() -> Contract:
    """The contract of the hosted service under `/v2`: zones, operations and everything about databases."""
    return load(hosted_document(), "/v2", re.compile(r"/(dbaas-[^/]+|zone|operation)(/|$)").match)


def platform_document() -> bytes:
    """The OpenAPI document of pgherd's own calls."""
    return Path(__file__).with_name("platform.json").read_bytes()


def load_platform() -> Contract:
    """The contract of pgherd's own calls, under `/pgherd/v1`."""
    return load(platform_document(), "/pgherd/v1")


def load(document: bytes, prefix: str, wanted: Callable[[str], object] = lambda path: True) -> Contract:
    """Read the operations whose path is `wanted` (a path as the document writes it, without the prefix)."""
    whole = msgspec.json.decode(document, type=_Document)
    raw_schemas = whole.components.schemas
    operations: list[tuple[str, str, _Operation]] = []
    needed: set[str] = set()
    for path, item in whole.paths.items():
        if not wanted(path):
            continue
        for method, raw in item.items():
            if method in METHODS:
                operations.append((path, method.upper(), msgspec.json.decode(bytes(raw), type=_Operation)))
                needed |= _references(bytes(raw))
    schemas = Schemas(_closure(needed, raw_schemas))
    return Contract(prefix, (_route(prefix, path, method, op, schemas) for path, method, op in operations), schemas)


def _references(raw: bytes) -> set[str]:
    return {name.decode() for name in re.findall(rb'"#/components/schemas/([^"]+)"', raw)}


def _closure(names: set[str], schemas: Mapping[str, msgspec.Raw]) -> dict[str, bytes]:
    kept: dict[str, bytes] = {}
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        kept[name] = bytes(schemas[name])
        waiting |= _references(kept[name]) - kept.keys()
    return kept


def _route(prefix: str, path: str, method: str, operation: _Operation, schemas: Schemas) -> Route:
    parts = path.removeprefix("/").split("/")
    names = tuple(part[1:-1] for part in parts if part.startswith("{"))
    declared = {p.name: p.schema for p in operation.parameters if p.location == "path"}
    if set(names) != set(declared):
        raise Fault("The API's contract is broken.", detail=f"{method} {path}: parameters do not match the path")
    request, responses = bytes(operation.request), bytes(operation.responses)
    return Route(
        operation_id=operation.operation_id,
        method=method,
        path=prefix + path,
        segments=tuple(None if part.startswith("{") else part for part in parts),
        params=names,
        param_shape=Shape(lambda: schemas.expanded({"type": "object", "properties": declared})),
        body=None if request == b"null" else Shape(lambda: closed(schemas.expanded(_content(request)))),
        answer=Shape(lambda: schemas.expanded(_content(responses, "200"))),
        closed_answer=Shape(lambda: closed(schemas.expanded(_content(responses, "200")))),
    )


def _content(raw: bytes, *path: str) -> dict[str, Any]:
    found = msgspec.json.decode(raw)
    for step in (*path, "content", "application/json", "schema"):
        found = found.get(step, {})
    schema: dict[str, Any] = found
    return schema
