"""Requests as the real clients sign them, against an application in this process or a server on a port."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pgherd.api.app import Application
from pgherd.api.request import Request
from pgherd.api.signature import signature
from pgherd.contract.document import Contract
from pgherd.store.keys import Key

ORGANIZATION = UUID("6a0f4dd5-67ae-4b11-a4d5-0b0a57a0c6a1")
ADMIN = Key("EXOadmin", b"admin-secret", ORGANIZATION, "acme", "admin")
READER = Key("EXOreader", b"reader-secret", ORGANIZATION, "acme", "read-only")
OPERATOR = Key("EXOoperator", b"operator-secret", UUID(int=1), "platform", "operator")


class KnownKeys:
    """Keys by id, without a database."""

    def __init__(self, *keys: Key) -> None:
        self._keys = {key.id: key for key in keys}

    async def get(self, key_id: str) -> Key | None:
        return self._keys.get(key_id)


def authorization(
    key: Key, method: str, target: str, body: bytes = b"", *, expires: int | None = None, args: tuple[str, ...] = ()
) -> bytes:
    """An Authorization header; `target` is the escaped path, with a query if there is one."""
    path, _, query = target.encode().partition(b"?")
    until = int(time.time()) + 600 if expires is None else expires
    names = tuple(name.encode() for name in args)
    signed = signature(key.secret, method, path, query, body, names, until)
    listed = f",signed-query-args={';'.join(args)}" if args else ""
    return f"EXO2-HMAC-SHA256 credential={key.id}{listed},expires={until},signature={signed}".encode()


@dataclass
class Answer:
    """What the application sent."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        text: str = self.json["message"]
        return text


def call(
    app: Application,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    key: Key | None = ADMIN,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    parts: list[bytes] | None = None,
) -> Answer:
    """Send one request to the application. `parts` sends the body in chunks, without Content-Length."""
    path, _, query = target.encode().partition(b"?")
    sent = list(headers)
    if key:
        sent.append((b"authorization", authorization(key, method, target, body if parts is None else b"".join(parts))))
    if parts is not None:
        sent.append((b"transfer-encoding", b"chunked"))
    elif body:
        sent.append((b"content-length", b"%d" % len(body)))
    scope = {
        "type": "http",
        "method": method,
        "path": target,
        "raw_path": path,
        "query_string": query,
        "headers": sent,
        "client": ("192.0.2.7", 4711),
    }
    waiting = [body] if parts is None else list(parts)
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(app(scope, receive, send))
    assert len(messages) == 2, "one head and one body"
    head = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    assert int(head["content-length"]) == len(messages[1]["body"])
    return Answer(messages[0]["status"], head, messages[1]["body"])


async def echo(request: Request) -> object:
    """A handler that answers with what it was given."""
    return {
        "operation": request.operation_id,
        "params": request.params,
        "body": request.body,
        "key": request.key.id,
        "signature": request.signature,
        "expires": request.expires,
        "remote": request.remote,
    }


def echoing(contract: Contract, **options: Any) -> Application:
    """The whole contract, every operation answered by `echo`."""
    handlers = {name: options.pop(name, echo) for name in contract.routes}
    return Application([contract], handlers, KnownKeys(ADMIN, READER, OPERATOR), **options)
