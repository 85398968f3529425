"""HTTP/1.1 over real sockets and uvicorn: h2c, chunks, pipelines, connections after errors."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import uvicorn
from exoscale_auth import ExoscaleV2Auth

from pgherd.api import http
from pgherd.api.body import LIMIT
from pgherd.contract.document import load_hosted
from tests.plugins.wire import ADMIN, authorization, echoing

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
TARGET = "/v2/dbaas-postgres/db"
BODY = b'{"plan":"hobbyist-2"}'


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(echoing(load_hosted()), lifespan="on", **http.server_options())
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)


class Wire:
    """One connection: sends bytes, reads responses one by one."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self._socket.sendall(part)

    def answer(self, *, head: bool = False) -> tuple[int, Any]:
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        length = int(headers[b"content-length"])
        return status, None if head else json.loads(self._file.read(length))

    def closed(self) -> bool:
        return self._file.read(1) == b""


def head(method: str = "POST", target: str = TARGET, extra: bytes = b"", body: bytes = b"") -> bytes:
    signed = authorization(ADMIN, method, target, body)
    return b"%s %s HTTP/1.1\r\nHost: x\r\n%sAuthorization: %s\r\n" % (method.encode(), target.encode(), extra, signed)


ZONE = b"GET /v2/zone HTTP/1.1\r\nHost: x\r\n\r\n"


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:3], body[3:])) + b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("cut", ["one packet", "head apart", "byte by byte"])
def test_java_asks_for_h2c_and_sends_a_body(port: int, framing: str, cut: str) -> None:
    """httptools takes such a body for another protocol; the answer must show that it was read."""
    start = head(extra=H2C, body=BODY)
    if framing == "length":
        start, rest = start + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY
    else:
        start, rest = start + b"Transfer-Encoding: chunked\r\n\r\n", chunked(BODY)
    with Wire(port) as wire:
        for _ in range(2):
            if cut == "one packet":
                wire.send(start + rest)
            elif cut == "head apart":
                wire.send(start, rest)
            else:
                wire.send(*(bytes([byte]) for byte in start + rest))
            status, got = wire.answer()
            assert (status, got["body"]) == (200, {"plan": "hobbyist-2"})
        wire.send(ZONE)
        assert wire.answer()[0] == 200


def test_h2c_without_body_pipelined(port: int, caplog: pytest.LogCaptureFixture) -> None:
    get = ZONE.replace(b"\r\n\r\n", b"\r\n" + H2C + b"\r\n")
    post = head(extra=H2C, body=BODY) + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    with caplog.at_level(logging.WARNING), Wire(port) as wire:
        wire.send(get + post + ZONE + get)
        assert [wire.answer()[1]["operation"] for _ in range(4)] == [
            "list-zones",
            "create-dbaas-service-pg",
            "list-zones",
            "list-zones",
        ]
    assert not caplog.records


def test_connection_lives_on_after_refusals(port: int) -> None:
    with Wire(port) as wire:
        for request, status in (
            (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{bad body" % TARGET.encode(), 403),
            (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
            (b"DELETE /v2/zone HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abcdef"), 405),
            (head(body=b"{}") + b"Content-Length: 2\r\n\r\n{}", 400),
            (ZONE, 200),
        ):
            wire.send(request)
            assert wire.answer()[0] == status


def test_pipeline_is_answered_in_order(port: int) -> None:
    good = head(body=BODY) + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    with Wire(port) as wire:
        wire.send((ZONE + good) * 10)
        assert [wire.answer()[1]["operation"] for _ in range(20)] == ["list-zones", "create-dbaas-service-pg"] * 10


def test_head_has_no_body(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"HEAD /v2/zone HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.answer(head=True)[0] == 200
        wire.send(ZONE)
        assert wire.answer()[0] == 200


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_body_gets_its_413_and_the_connection_ends(port: int, framing: str) -> None:
    body = b" " * (4 * LIMIT)
    start = head(body=body)
    with Wire(port) as wire:
        if framing == "length":
            wire.send(start + b"Content-Length: %d\r\n\r\n" % len(body), body)
        else:
            wire.send(start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body), body, b"\r\n0\r\n\r\n")
        assert wire.answer()[0] == 413
        assert wire.closed()


def test_expecting_client_is_refused_before_it_sends(port: int) -> None:
    with Wire(port) as wire:
        wire.send(head() + b"Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n")
        assert wire.answer()[0] == 413
        assert wire.closed()


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"GET /v2/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v2/zone HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/zone HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /v2/zone HTTP/1.1\r\nX: " + b"a" * (http.HEAD_LIMIT * 3),
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_what_is_no_http_is_answered_as_json(port: int, raw: bytes) -> None:
    with Wire(port) as wire:
        wire.send(raw)
        status, body = wire.answer()
        assert status == 400
        assert body["message"]
        assert wire.closed()


def test_silent_and_slow_clients_are_disconnected(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_PATIENCE", 0.5)
    with Wire(port) as silent, Wire(port) as slow, Wire(port) as between:
        slow.send(b"GET /v2/zone HTTP/1.1\r\nX-")
        between.send(ZONE)
        assert between.answer()[0] == 200
        between.send(b"GET")
        assert silent.closed() and slow.closed() and between.closed()


def test_requests_session_with_the_official_signer(port: int) -> None:
    with requests.Session() as session:
        session.auth = ExoscaleV2Auth(ADMIN.id, ADMIN.secret.decode())
        base = f"http://127.0.0.1:{port}/v2"
        assert session.put(f"{base}/dbaas-postgres/a b/user/ü/password/reset").json()["params"] == {
            "service-name": "a b",
            "username": "ü",
        }
        assert session.post(f"{base}/dbaas-postgres/x", json={"plan": "y"}).status_code == 200
        assert session.get(f"{base}/dbaas-service", params={"a": ["1", "2"], "b": "é +", "c": ""}).status_code == 200
