"""Turns OpenAPI 3.0 schemas into JSON Schema draft 4 and says in plain words what a value breaks.

Draft 4 is the draft that OpenAPI 3.0 grew from: boolean exclusive bounds, and an integer is an integer
(`20.0` is not). References are filled in where they stand, so that the path of a fault leads straight
to the schema that it breaks. Messages name what is allowed and never repeat a value: it may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonschema_rs
import msgspec

from pgherd.errors import Fault, Incorrect

UUID = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
INT64 = 2**63
#: Most faults that one message lists.
MOST_FAULTS = 20

#: Keywords that say nothing about validity; a `default` or `example` must not cost memory either.
_SILENT = frozenset({"description", "example", "title", "default", "readOnly", "writeOnly", "deprecated"})

Schema = dict[str, Any]


class Schemas:
    """The named schemas of a document, kept as bytes."""

    def __init__(self, raw: Mapping[str, bytes]) -> None:
        self._raw = raw

    def expanded(self, schema: Schema, _within: tuple[str, ...] = ()) -> Schema:
        """The schema with every reference replaced by what it names. Words beside a reference win over its own."""
        if "$ref" in schema:
            name = str(schema["$ref"]).removeprefix("#/components/schemas/")
            if name in _within:
                raise Fault("The API's contract is broken.", detail=f"schema {name} contains itself")
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            return self.expanded(msgspec.json.decode(self._raw[name]), (*_within, name)) | beside
        result = dict(schema)
        for key in ("properties", "items", "additionalProperties"):
            inner = result.get(key)
            if key == "properties" and isinstance(inner, dict):
                result[key] = {name: self.expanded(value, _within) for name, value in inner.items()}
            elif isinstance(inner, dict):
                result[key] = self.expanded(inner, _within)
        return result


def closed(schema: Schema) -> Schema:
    """The same schema, refusing fields that it does not name, at every depth where it names any."""
    result = dict(schema)
    if "properties" in result:
        result["properties"] = {name: closed(value) for name, value in result["properties"].items()}
        result.setdefault("additionalProperties", False)
    if isinstance(result.get("items"), dict):
        result["items"] = closed(result["items"])
    return result


def draft4(schema: Schema) -> Schema:
    """An expanded OpenAPI 3.0 schema as JSON Schema draft 4."""
    result = {key: value for key, value in schema.items() if key not in _SILENT and not key.startswith("x-")}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), dict):
            result[key] = draft4(result[key])
    if "properties" in result:
        result["properties"] = {name: draft4(value) for name, value in result["properties"].items()}
    if result.get("type") == "integer":
        result.setdefault("minimum", -INT64)
        result.setdefault("maximum", INT64 - 1)
    form = result.pop("format", None)
    if form == "uuid":
        result["pattern"] = UUID
    elif form == "date-time":
        result["format"] = form
    if result.pop("nullable", False):
        result["type"] = [result["type"], "null"]
        if "enum" in result:
            result["enum"] = [*result["enum"], None]
    return result


class Shape:
    """What a value must look like; compiled when first used."""

    __slots__ = ("_make", "_schema", "_validator")

    def __init__(self, make: Callable[[], Schema]) -> None:
        self._make = make
        self._schema: Schema = {}
        self._validator: jsonschema_rs.Draft4Validator | None = None

    def faults(self, value: Any) -> list[str]:
        """Everything that is wrong with `value`, as `field: what is allowed`; empty when nothing is."""
        validator = self._validator or self._compile()
        if validator.is_valid(value):
            return []
        lines = (line for error in validator.iter_errors(value) for line in self._lines(error))
        return list(dict.fromkeys(lines))

    def check(self, value: Any) -> None:
        """Raise Incorrect with all faults in one message."""
        faults = self.faults(value)
        if faults:
            raise incorrect(faults)

    def _compile(self) -> jsonschema_rs.Draft4Validator:
        self._schema = draft4(self._make())
        self._validator = jsonschema_rs.Draft4Validator(self._schema, validate_formats=True)
        return self._validator

    def _lines(self, error: jsonschema_rs.ValidationError) -> list[str]:
        schema: Any = self._schema
        for step in error.schema_path[:-1]:
            schema = schema[step]
        path = _dotted(error.instance_path)
        kind = error.kind
        if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
            known = ", ".join(sorted(schema.get("properties", ()))) or "none"
            return [f"{_joined(path, _clipped(name))}: is not known; known are {known}" for name in kind.unexpected]
        if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
            return [f"{_joined(path, str(kind.property).strip(chr(34)))}: is required"]
        return [f"{path or 'body'}: must be {allowed(schema)}"]


def incorrect(faults: Sequence[str]) -> Incorrect:
    """The refusal that lists `faults`, the first MOST_FAULTS of them."""
    more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return Incorrect("; ".join(faults[:MOST_FAULTS]) + more)


def allowed(schema: Schema) -> str:
    """What a draft 4 schema allows, in words: `an integer from 1 to 1024`."""
    kinds = schema.get("type")
    names = kinds if isinstance(kinds, list) else [kinds]
    orelse = " or null" if "null" in names else ""
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"] if value is not None) + orelse
    kind = next((name for name in names if name != "null"), None)
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a number") + _bounds(schema) + orelse
    if kind == "string":
        return _text(schema) + orelse
    words = {"boolean": "true or false", "object": "an object", "array": "a list"}
    return words.get(str(kind), "something else") + orelse


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    over = " above" if schema.get("exclusiveMinimum") else " from"
    if low is not None and high is not None and low > -INT64 and high < INT64 - 1:
        return f"{over} {low} to {high}"
    if low is not None and low > -INT64:
        return f" above {low}" if schema.get("exclusiveMinimum") else f" of at least {low}"
    return f" of at most {high}" if high is not None and high < INT64 - 1 else ""


def _text(schema: Schema) -> str:
    if schema.get("pattern") == UUID:
        return "a UUID"
    if schema.get("format") == "date-time":
        return "a time such as 2026-01-31T12:00:00Z"
    low, high = schema.get("minLength"), schema.get("maxLength")
    size = ""
    if high is not None:
        size = f" of {low} characters" if low == high else f" of {low or 0} to {high} characters"
    elif low:
        size = f" of at least {low} character{'s' if low > 1 else ''}"
    return f"a string{size}" + (f" that matches {schema['pattern']}" if "pattern" in schema else "")


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for step in path:
        text = f"{text}[{step}]" if isinstance(step, int) else _joined(text, _clipped(step))
    return text


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _clipped(name: str) -> str:
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 64 else shown[:61] + "..."
