"""Reads a request body: bounded in size and time, and JSON without anything that two readers could read differently."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pgherd.errors import Incorrect, PgherdError, TooLarge

#: Most bytes of a body, and of one that is read to its end only to be refused.
LIMIT = 1 << 20
DRAIN = 16 << 20
#: Seconds that a client has for sending its body.
PATIENCE = 20.0
#: Most levels of nesting; the contract needs four.
DEPTH = 32

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class SlowBody(PgherdError):
    """The body did not arrive in time."""

    status = 408
    reason = "incorrect"


class Disconnected(Exception):
    """The client went away; nobody reads an answer."""


async def read(receive: Receive, length: int | None) -> bytes:
    """The whole body. `length` is the Content-Length, None when it is chunked.

    Raises TooLarge (after reading on for a while, so that the client gets to the answer), SlowBody,
    Disconnected. The caller must close the connection after the first two.
    """
    if length is not None and length > DRAIN:
        raise _too_large()
    try:
        async with asyncio.timeout(PATIENCE):
            return await _read(receive)
    except TimeoutError:
        raise SlowBody("The request body did not arrive in time.") from None


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size <= LIMIT:
            parts.append(part)
        else:
            parts.clear()
        if size > DRAIN or (size > LIMIT and not message.get("more_body")):
            raise _too_large()
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large() -> TooLarge:
    return TooLarge(f"The request body is larger than {LIMIT} bytes.")


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body; an empty body is `{}`. Raises Incorrect for anything else."""
    if not raw.strip():
        return {}
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Incorrect("The request body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise Incorrect("The request body must be a JSON object.")
    _check(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise Incorrect("The request body names a field twice.")
    return result


def _no_constant(name: str) -> None:
    raise Incorrect(f"The request body is not valid JSON: {name} is not a number.")


def _check(body: dict[str, Any]) -> None:
    """Refuse what JSON can spell but no text or number of PostgreSQL can hold."""
    level: list[Any] = [body]
    for _ in range(DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                _check_text(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise Incorrect("The request body holds a number that is too large.")
        if not below:
            return
        level = below
    raise Incorrect(f"The request body is nested deeper than {DEPTH} levels.")


def _check_text(value: str) -> None:
    if "\0" in value:
        raise Incorrect("The request body holds a NUL character.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Incorrect("The request body holds half a surrogate pair.") from None
