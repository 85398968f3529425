"""What a handler gets, and what it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pgherd.store.keys import Key


@dataclass(frozen=True, slots=True)
class Request:
    """An authenticated, validated request.

    `params` are the decoded path parameters, `body` the JSON object. `signature` is the raw signature and
    `expires` its end in unix seconds: a repeated request has the same. `remote` is the client's address,
    `query` the raw query string.
    A public operation has the key `signature.NOBODY` and no signature.
    """

    operation_id: str
    params: dict[str, str]
    body: dict[str, Any]
    key: Key
    signature: str
    expires: int
    remote: str
    query: bytes = b""


#: Answers with what msgspec can encode as JSON, or with bytes that are JSON already.
Handler = Callable[[Request], Awaitable[object]]

#: What is wrong with a body beside what the contract says, however little of it is as the contract wants it.
Faults = Callable[[Request], Awaitable[list[str]]]
