"""The API as an ASGI application: finds the operation, authenticates, validates, calls its handler, answers JSON.

Small on purpose: routes and validators come from the contract, so that nothing is left for a framework, and
a request costs well under 0.1 ms here. Errors become HTTP in this one place.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from pgherd.api import body as bodies
from pgherd.api import roles, signature
from pgherd.api.audit import is_recorded, subject
from pgherd.api.request import Faults, Handler, Request
from pgherd.api.router import MethodNotAllowed, Router
from pgherd.contract.document import Contract, Route
from pgherd.contract.schema import incorrect
from pgherd.errors import Fault, Forbidden, Incorrect, PgherdError, TooLarge, Unsupported
from pgherd.store.keys import Key

log = logging.getLogger("pgherd.api")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_NO_STORE = (b"cache-control", b"no-store")
_CLOSE = (b"connection", b"close")
_encode = msgspec.json.Encoder().encode


class Audit(Protocol):
    """Where calls leave their events; see `audit.Audit`."""

    async def begin(self, key: Key, remote: str, command: str, about: str) -> int:
        """The event's id. Raises Unavailable, and then nothing may be done."""

    async def end(self, event: int, error: Exception | None, answer: object = None) -> None:
        """What came of it. Never fails."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation as it is served: by its handler, or by a refusal that says when it comes."""

    handler: Handler | None
    refusal: str
    public: bool
    more_faults: Faults | None = None


class Application:
    """Serves the operations of the contracts.

    Every operation of every contract needs a handler or a refusal; Fault names those that have none.
    `lifespan` is entered when the server starts and left when it ends.
    """

    def __init__(
        self,
        contracts: Iterable[Contract],
        handlers: Mapping[str, Handler],
        keys: signature.Keys,
        *,
        refusals: Mapping[str, str] | None = None,
        public: frozenset[str] = roles.PUBLIC,
        lifespan: AbstractAsyncContextManager[Any] | None = None,
        clock: Callable[[], float] = time.time,
        audit: Audit | None = None,
        more_faults: Mapping[str, Faults] | None = None,
    ) -> None:
        self._keys, self._lifespan, self._clock, self._audit = keys, lifespan, clock, audit
        self._router: Router[Entry] = Router()
        refused = refusals or {}
        known: set[str] = set()
        for contract in contracts:
            for name, route in contract.routes.items():
                if name in known or (name not in handlers and name not in refused):
                    raise Fault("The API is incomplete.", detail=f"operation {name} is there twice or has no handler")
                known.add(name)
                more = (more_faults or {}).get(name)
                entry = Entry(handlers.get(name), refused.get(name, ""), name in public, more)
                self._router.add(contract.prefix, route, entry)
        if handlers.keys() - known:
            raise Fault("The API is incomplete.", detail=f"no such operations: {sorted(handlers.keys() - known)}")

    async def __call__(self, scope: Scope, receive: bodies.Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected ASGI scope {scope['type']}")
        try:
            content = await self._answer(scope, receive)
            status, headers = 200, [_JSON, _NO_STORE]
        except bodies.Disconnected:
            return
        except PgherdError as error:
            status, content, headers = _refused(error, scope)
        except Exception as error:
            status, content, headers = _refused(Fault("Internal error.", detail=type(error).__name__), scope, error)
        headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: bodies.Receive) -> bytes:
        method, raw_path = scope["method"], scope["raw_path"]
        route, entry, params = self._router.find(method, raw_path)
        authorization, length, chunked = _head(scope["headers"])
        credential = None if entry.public else signature.parse(authorization)
        raw = await bodies.read(receive, None if chunked else length) if chunked or length else b""
        key = signature.NOBODY
        if credential is not None:
            found = await self._keys.get(credential.key)
            query, now = scope["query_string"], self._clock()
            key = signature.verify(credential, found, method, raw_path, query, raw, now)
        request = Request(
            route.operation_id,
            params,
            {},
            key,
            credential.signature if credential else "",
            credential.expires if credential else 0,
            scope["client"][0] if scope.get("client") else "",
            scope["query_string"],
        )
        if self._audit is None or credential is None or not is_recorded(method, route.operation_id):
            answer = await _handled(route, entry, request, raw)
        else:
            answer = await self._recorded(self._audit, route, entry, request, raw)
        return answer if isinstance(answer, bytes) else _encode(answer)

    async def _recorded(self, audit: Audit, route: Route, entry: Entry, request: Request, raw: bytes) -> object:
        """What the handler answers, between the beginning and the end of the call's event."""
        about = subject(request.params, _readable(raw))
        event = await audit.begin(request.key, request.remote, request.operation_id, about)
        try:
            answer = await _handled(route, entry, request, raw)
        except Exception as error:
            await audit.end(event, error)
            raise
        await audit.end(event, None, answer)
        return answer

    async def _live(self, receive: bodies.Receive, send: Send) -> None:
        await receive()
        try:
            if self._lifespan:
                await self._lifespan.__aenter__()
        except Exception as error:
            log.exception("the API could not start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._lifespan:
            await self._lifespan.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})


def _head(headers: Headers) -> tuple[bytes | None, int, bool]:
    authorization: bytes | None = None
    length, chunked = 0, False
    for name, value in headers:
        if name == b"authorization":
            if authorization is not None:
                raise Forbidden(signature.REFUSAL)
            authorization = value
        elif name == b"content-length":
            if not value.isdigit():
                raise Incorrect("Content-Length is not a number.")
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = True
    return authorization, length, chunked


async def _handled(route: Route, entry: Entry, request: Request, raw: bytes) -> object:
    if not entry.public:
        roles.check(request.key.role, route.operation_id)
    if entry.handler is None:
        raise Unsupported(entry.refusal)
    body = bodies.parse(raw)
    request = replace(request, body=body)
    if faults := _faults(route, request.params, body):
        # Whoever sends something wrong learns all of it at once.
        raise incorrect([*faults, *(await entry.more_faults(request) if entry.more_faults else ())])
    return await entry.handler(request)


def _readable(raw: bytes) -> dict[str, Any]:
    """The body as far as it can be read; the refusal of a request may be that it cannot."""
    try:
        return bodies.parse(raw)
    except PgherdError:
        return {}


def _faults(route: Route, params: dict[str, str], body: dict[str, Any]) -> list[str]:
    if params:
        route.param_shape.check(params)
    if route.body is not None:
        return route.body.faults(body)
    if body:
        raise Incorrect(f"{route.operation_id} takes no body.")
    return []


def _refused(error: PgherdError, scope: Scope, cause: Exception | None = None) -> tuple[int, bytes, Headers]:
    """The answer to a refusal. A fault is logged under an id that the answer names; the request's body never is."""
    headers: Headers = [_JSON, _NO_STORE]
    message = error.message
    if error.status >= 500:
        incident = secrets.token_hex(4)
        log.error("%s %s %s: %s", incident, scope["method"], scope["path"], error, exc_info=cause or error)
        message = f"{message} The API's log has more under {incident}."
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode("ascii")))
    if isinstance(error, TooLarge | bodies.SlowBody):
        headers.append(_CLOSE)
    if error.status == 503:
        headers.append((b"retry-after", b"1"))
    return error.status, _encode({"message": message}), headers
