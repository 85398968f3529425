"""Values from the command line as JSON: settings typed by their schema, and request bodies as `exo api` takes them.

A body is JSON, `@FILE`, `-` for standard input, or pairs:
`plan: startup-4, pg-settings.jit: true, ip-filter: [10.0.0.0/8]`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pgherd.cli.outcome import CliError, Exit

Schema = dict[str, Any]


class Bare(str):
    """A word without quotes in a pair: its type is decided by the schema, else by its look."""


def wrong(message: str, hint: str = "") -> CliError:
    """A usage error."""
    return CliError(Exit.USAGE, message, hint)


# --- settings: `key=value`, typed by a schema ------------------------------------------------------------------------


def typed_settings(schema: Schema, pairs: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` and `group.key=value` into a settings object. Raises CliError naming the wrong one."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise wrong(f"A setting is KEY=VALUE, not {pair!r}.")
        path = _path_in(schema, key.strip())
        target, inner = settings, schema
        for group in path[:-1]:
            target = target.setdefault(group, {})
            inner = inner["properties"][group]
        target[path[-1]] = typed(text, inner["properties"][path[-1]], key.strip())
    return settings


#: PostgreSQL's names of what the API has under names of its own, or the plan decides.
_ELSEWHERE = {
    "work_mem": "It has an option of its own: --work-mem",
    "shared_buffers": "It has an option of its own: --shared-buffers-percentage",
    "max_connections": "The plan decides it: choose a larger --plan.",
}


def _path_in(schema: Schema, key: str) -> list[str]:
    known = _paths(schema)
    if key in known:
        return known[key]
    near = get_close_matches(key, known, n=3) or [name for name in known if name.endswith(key)]
    listed = f"There are: {', '.join(known)}." if len(known) < 20 else "See them: pgherd api get-dbaas-settings-pg"
    hint = f"Did you mean {', '.join(near)}?" if near else listed
    hint = _ELSEWHERE.get(key, hint)
    raise wrong(f"There is no setting {key!r}.", hint)


def _paths(schema: Schema) -> dict[str, list[str]]:
    """Every leaf by its dotted name; a dot may also be part of a key, as in pg_stat_statements.track."""
    found = {}
    for name, inner in schema.get("properties", {}).items():
        if inner.get("properties"):
            found.update({f"{name}.{key}": [name, *path] for key, path in _paths(inner).items()})
        else:
            found[name] = [name]
    return found


def typed(text: str, schema: Schema, name: str) -> Any:
    """Turn a text into the type that the schema wants. Raises CliError with the name and what is allowed."""
    kinds = _kinds(schema)
    if "null" in kinds and text == "null":
        return None
    if "boolean" in kinds and text.lower() in ("true", "false", "on", "off", "yes", "no"):
        return text.lower() in ("true", "on", "yes")
    if "integer" in kinds and re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if "number" in kinds and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    if "array" in kinds:
        return [typed(part.strip(), schema.get("items", {}), name) for part in text.split(",") if part.strip()]
    if "string" in kinds or not kinds:
        allowed = schema.get("enum")
        if allowed and text not in allowed:
            known = ", ".join(map(str, [*allowed, *(["null"] if "null" in kinds else [])]))
            raise wrong(f"{name} must be one of {known}, not {text!r}.")
        return text
    raise wrong(f"{name} must be of type {' or '.join(kinds)}, not {text!r}.", str(schema.get("description", "")))


def _kinds(schema: Schema) -> list[str]:
    """The types that a value may have; OpenAPI 3.0 calls null none of them, but says `nullable` beside."""
    kind = schema.get("type", [])
    kinds = [kind] if isinstance(kind, str) else list(kind)
    return [*kinds, "null"] if schema.get("nullable") and kinds else kinds


# --- bodies ----------------------------------------------------------------------------------------------------------


def read_body(words: Sequence[str], schema: Schema | None, document: Schema) -> Any:
    """The request body that the words of a command line give, or None without any. Raises CliError."""
    text = " ".join(words).strip()
    if not text:
        return None
    if text == "-":
        return _from_json(sys.stdin.read(), "standard input")
    if text.startswith("@"):
        try:
            with open(text[1:], encoding="utf-8") as file:
                return _from_json(file.read(), text[1:])
        except (OSError, UnicodeDecodeError) as error:
            raise wrong(f"Cannot read the body: {error}.") from None
    if text[0] in "{[":
        try:
            return json.loads(text)
        except ValueError as error:
            if text[0] == "[" or re.match(r'\{\s*"', text):
                raise wrong(f"The body is no valid JSON: {error}.") from None
    pairs = _Pairs(text)
    return settle(pairs.whole(), schema, document)


def _from_json(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise wrong(f"{origin} holds no valid JSON: {error}.") from None


def resolve(schema: Schema | None, document: Schema) -> Schema:
    """The schema itself, after following its reference into the document."""
    while schema and "$ref" in schema:
        target: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        schema = target
    return schema or {}


def settle(value: Any, schema: Schema | None, document: Schema, name: str = "body") -> Any:
    """Give the bare words inside a parsed value their types, and dotted keys their places, after the schema."""
    known = resolve(schema, document)
    if isinstance(value, Bare):
        return typed(str(value), known, name) if _kinds(known) else guessed(str(value))
    if isinstance(value, list):
        return [settle(item, known.get("items"), document, name) for item in value]
    if not isinstance(value, dict):
        return value
    placed: dict[str, Any] = {}
    properties = known.get("properties", {})
    for key, inner in value.items():
        path = _place(key, known, document)
        here: Any = inner
        for part in reversed(path[1:]):
            here = {part: here}
        first = settle(here, properties.get(path[0]), document, path[0])
        placed[path[0]] = _merged(placed.get(path[0]), first)
    return placed


def _place(key: str, schema: Schema, document: Schema) -> list[str]:
    """Where a dotted key belongs: a key that the schema knows as a whole is not split."""
    if key in schema.get("properties", {}) or "." not in key:
        return [key]
    head, _, rest = key.partition(".")
    return [head, *_place(rest, resolve(schema.get("properties", {}).get(head), document), document)]


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _merged(old.get(key), new.get(key, old.get(key))) for key in {**old, **new}}
    return new


def guessed(word: str) -> Any:
    """The value that a bare word looks like: null, true, false, a number, else the word itself."""
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return word if isinstance(value, str | list | dict) else value


class _Pairs:
    """A reader of `key: value, key: {key: value}, key: [value, value]`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> dict[str, Any]:
        """All pairs of the text, with or without braces around them."""
        if self._peek() == "{":
            self._at += 1
            pairs = self._object("}")
        else:
            pairs = self._object("")
        if self._peek():
            raise self._error("the end")
        return pairs

    def _object(self, end: str) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while self._peek() not in ("", end):
            key = str(self._quoted() if self._peek() == '"' else self._word(":,{}"))
            if not key or self._peek() != ":":
                raise self._error("KEY: VALUE")
            self._at += 1
            listed = key.endswith("[]")
            value = self._value("," + end)
            pairs[key.removesuffix("[]")] = [*pairs.get(key.removesuffix("[]"), []), value] if listed else value
            if self._peek() == ",":
                self._at += 1
        self._close(end)
        return pairs

    def _value(self, stops: str) -> Any:
        start = self._peek()
        if start == "{":
            self._at += 1
            return self._object("}")
        if start == "[":
            self._at += 1
            items = []
            while self._peek() not in ("", "]"):
                items.append(self._value(",]"))
                if self._peek() == ",":
                    self._at += 1
            self._close("]")
            return items
        return self._quoted() if start == '"' else Bare(self._word(stops))

    def _quoted(self) -> str:
        try:
            value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
        except ValueError:
            raise self._error("a closing quote") from None
        return str(value)

    def _word(self, stops: str) -> str:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in stops:
            self._at += 1
        return self._text[start : self._at].strip()

    def _peek(self) -> str:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _close(self, end: str) -> None:
        if end and self._peek() != end:
            raise self._error(repr(end))
        self._at += len(end)

    def _error(self, wanted: str) -> CliError:
        rest = self._text[self._at :] or "the end"
        hint = "Give JSON, @FILE, - or KEY: VALUE pairs."
        return wrong(f"Cannot read the body: expected {wanted} at {rest!r}.", hint)
