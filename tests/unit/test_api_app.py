"""The dispatcher: paths, roles, bodies, errors, as the clients see them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from pgherd.api import body as bodies
from pgherd.api import unavailable
from pgherd.api.app import Application
from pgherd.api.request import Request
from pgherd.api.roles import READ_ONLY
from pgherd.api.router import Router
from pgherd.contract.document import load_hosted, load_platform
from pgherd.errors import Conflict, Fault, Incorrect, NotFound, Unavailable
from tests.plugins.wire import ADMIN, OPERATOR, READER, KnownKeys, call, echo, echoing

HOSTED = load_hosted()
APP = echoing(HOSTED)
PG = "/v2/dbaas-postgres/"


def test_request_reaches_its_handler() -> None:
    answer = call(APP, "POST", PG + "db-1", b'{"plan":"hobbyist-2"}')
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    got = answer.json
    assert got["operation"] == "create-dbaas-service-pg"
    assert got["params"] == {"name": "db-1"}
    assert got["body"] == {"plan": "hobbyist-2"}
    assert (got["key"], got["remote"]) == (ADMIN.id, "192.0.2.7")
    assert len(got["signature"]) == 44
    assert got["expires"] > 0


@pytest.mark.parametrize("name", sorted(HOSTED.routes))
def test_every_operation_is_found(name: str) -> None:
    route = HOSTED.routes[name]
    values = dict.fromkeys(route.params, "b38fbd5e-8d5a-4b8b-a5d3-76e4f0b6e5d3")
    answer = call(APP, route.method, route.path.format(**values), b"" if route.body is None else b'{"zz":1}')
    if route.body is None and answer.status == 200:
        assert answer.json["operation"] == name
    else:
        assert answer.status == 400


def test_list_zones_needs_no_signature_and_nothing_else_goes_without() -> None:
    assert call(APP, "GET", "/v2/zone", key=None).status == 200
    for name, route in HOSTED.routes.items():
        if name != "list-zones":
            answer = call(APP, route.method, route.path.replace("{", "").replace("}", ""), key=None)
            assert (answer.status, answer.message) == (403, "Invalid request signature")


def test_signature_covers_path_body_and_method_on_the_wire() -> None:
    assert call(APP, "GET", PG + "a%2Fb").json["params"] == {"name": "a/b"}
    assert call(APP, "GET", PG + "%41%C3%A9").json["params"] == {"name": "Aé"}
    assert call(APP, "GET", PG + "a?x=1&y=2").status == 200
    assert call(APP, "HEAD", PG + "a").status == 200


def test_signed_twice_is_not_signed() -> None:
    assert call(APP, "GET", "/v2/dbaas-service", headers=((b"authorization", b"x"),)).status == 403


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/instance", 404),
        ("GET", "/v2/zone/", 404),
        ("GET", "//v2/zone", 404),
        ("GET", "/v2/dbaas-postgres", 404),
        ("POST", "/v2/dbaas-postgres/", 404),
        ("GET", "/v2/dbaas-postgres/a/b", 404),
        ("GET", "/v2/dbaas-postgres/a/user", 405),
        ("PATCH", "/v2/dbaas-postgres/a", 405),
        ("OPTIONS", "/v2/zone", 405),
        ("GET", "/v2/dbaas-postgres/%ff", 400),
        ("GET", "/v2/dbaas-postgres/a%00b", 400),
        ("GET", "/v2/dbaas-postgres/" + "a" * 64, 400),
        ("GET", "/v2/operation/1", 400),
    ],
)
def test_paths_and_methods_that_are_not_there(method: str, target: str, status: int) -> None:
    answer = call(APP, method, target)
    assert answer.status == status
    assert answer.message
    assert ("allow" in answer.headers) == (status == 405)


def test_405_says_what_is_allowed() -> None:
    assert call(APP, "PATCH", PG + "a").headers["allow"] == "DELETE, GET, HEAD, POST, PUT"


def test_empty_body_is_an_empty_object() -> None:
    reset = PG + "a/user/u/password/reset"
    assert call(APP, "PUT", reset).json["body"] == {}
    assert call(APP, "PUT", reset, b"{}").json["body"] == {}
    assert call(APP, "PUT", reset, b" \n").json["body"] == {}
    assert call(APP, "PUT", reset, parts=[b"", b""]).json["body"] == {}
    assert call(APP, "POST", PG + "a").message == "plan: is required"


def test_chunked_body() -> None:
    assert call(APP, "POST", PG + "a", parts=[b'{"plan"', b":", b'"x"}']).json["body"] == {"plan": "x"}


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"\xff\xfe",
        '{"plan":"x"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"plan":"x"}',
        b'{"plan":"x","plan":"y"}',
        b'{"plan":"x","pg-settings":{"jit":true,"jit":false}}',
        b'{"plan":NaN}',
        b'{"plan":"x","work-mem":Infinity}',
        b'{"plan":"x","pg-settings":{"autovacuum":{"autovacuum_vacuum_scale_factor":1e999}}}',
        b'{"plan":"a\\u0000b"}',
        b'{"plan":"a\x00b"}',
        b'{"a\\u0000":1}',
        b'{"plan":"\\ud800"}',
        b'{"plan":' + b"9" * 5000 + b"}",
        b'{"plan":' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"plan":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"plan":"x"}{}',
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_bodies_that_two_readers_could_read_differently(raw: bytes) -> None:
    answer = call(APP, "POST", PG + "a", raw)
    assert answer.status == 400
    assert answer.message


@pytest.mark.parametrize("wrong", ["a%00b", "%00", "%ED%A0%80"])
def test_no_operation_takes_a_path_with_what_no_text_holds(wrong: str) -> None:
    for contract, prefix in ((HOSTED, "/v2"), (load_platform(), "/pgherd/v1")):
        app = echoing(contract)
        for route in contract.routes.values():
            if route.params:
                path = prefix + route.path.removeprefix(prefix).format(**dict.fromkeys(route.params, wrong))
                assert call(app, route.method, path, key=OPERATOR).status == 400, route.operation_id


@pytest.mark.parametrize("wrong", ["\\u0000", "a\\u0000b", "\\ud800", "\\udc00\\ud800"])
@pytest.mark.parametrize("shape", ['{"%s":1}', '{"name":"%s"}', '{"x":{"y":["z",{"%s":1}]}}', '{"x":[["%s"]]}'])
def test_no_operation_takes_a_body_with_what_no_text_holds(shape: str, wrong: str) -> None:
    for contract, prefix in ((HOSTED, "/v2"), (load_platform(), "/pgherd/v1")):
        app = echoing(contract)
        for route in contract.routes.values():
            value = "b38fbd5e-8d5a-4b8b-a5d3-76e4f0b6e5d3"
            path = prefix + route.path.removeprefix(prefix).format(**dict.fromkeys(route.params, value))
            answer = call(app, route.method, path, (shape % wrong).encode(), key=OPERATOR)
            assert answer.status == 400 and answer.message.startswith("The request body holds "), route.operation_id


def test_integers_stay_integers() -> None:
    body = call(APP, "POST", PG + "a", b'{"plan":"x","work-mem":20}').body
    assert b'"work-mem":20,' in body or b'"work-mem":20}' in body
    assert call(APP, "POST", PG + "a", b'{"plan":"x","work-mem":20.0}').status == 400


def test_body_where_none_belongs() -> None:
    assert call(APP, "DELETE", PG + "a", b"{}").status == 200
    assert call(APP, "DELETE", PG + "a", b'{"force":true}').status == 400


@pytest.mark.parametrize("size", [bodies.LIMIT + 1, bodies.DRAIN + 1])
def test_large_bodies_are_refused_and_the_connection_closed(size: int) -> None:
    announced = ((b"content-length", b"%d" % size),)
    for answer in (
        call(APP, "POST", PG + "a", parts=[b" " * (size // 8 + 1)] * 8),
        call(APP, "POST", PG + "a", parts=[b" " * (size // 8 + 1)] * 8, headers=announced),
    ):
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
    assert call(APP, "POST", PG + "a", b"{" + b" " * (bodies.LIMIT - 14) + b'"plan":"x"}').status == 200


def test_slow_body_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE", 0.01)

    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(bodies.SlowBody):
        asyncio.run(bodies.read(never, 5))


def test_read_only_key_reads_and_nothing_else() -> None:
    for name, route in HOSTED.routes.items():
        target = route.path.format(**dict.fromkeys(route.params, "b38fbd5e-8d5a-4b8b-a5d3-76e4f0b6e5d3"))
        answer = call(APP, route.method, target, key=READER)
        if name in READ_ONLY:
            assert answer.status != 403, name
        else:
            assert answer.status == 403, name
            assert answer.message == "Forbidden by role policy for dbaas - A deny rule matched. Rule index: 0"
    assert not any("reveal" in name or not name.startswith(("get-", "list-")) for name in READ_ONLY)
    assert {*HOSTED.routes, *load_platform().routes} >= READ_ONLY


@pytest.mark.parametrize("key", [ADMIN, OPERATOR])
def test_other_roles_may_all(key: Any) -> None:
    assert call(APP, "DELETE", PG + "a", key=key).status == 200


def failing(error: Exception) -> Application:
    async def handler(request: Request) -> object:
        raise error

    return echoing(HOSTED, **{"get-dbaas-service-pg": handler})


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (NotFound("Service does not exist"), 404, "Service does not exist"),
        (Conflict("Service name is already taken"), 409, "Service name is already taken"),
        (Incorrect("no.", hint="Try x.", detail="/secret/path"), 400, "no. Try x."),
    ],
)
def test_refusals_become_http(error: Exception, status: int, message: str) -> None:
    answer = call(failing(error), "GET", PG + "a")
    assert (answer.status, answer.json) == (status, {"message": message})


@pytest.mark.parametrize(
    "error", [Fault("It broke.", detail="/var/x"), RuntimeError("/var/x"), ExceptionGroup("/var/x", [ValueError()])]
)
def test_faults_are_logged_under_an_id_that_the_answer_names(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = call(failing(error), "GET", PG + "a")
    assert answer.status == 500
    assert "/var/x" not in answer.message
    incident = answer.message.rstrip(".").split()[-1]
    assert incident in caplog.text
    assert "/var/x" in caplog.text


def test_fault_log_has_no_body(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request) -> object:
        raise RuntimeError("x")

    app = echoing(HOSTED, **{"create-dbaas-service-pg": handler})
    assert call(app, "POST", PG + "a", b'{"plan":"x","admin-password":"verysecret"}').status == 500
    assert "verysecret" not in caplog.text


def test_unavailable_asks_to_come_back() -> None:
    answer = call(failing(Unavailable("The metadata does not answer.")), "GET", PG + "a")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_what_is_not_available_is_refused_without_looking_at_the_body() -> None:
    refused = unavailable.refusals(HOSTED)
    served = {name: echo for name in HOSTED.routes if name not in refused}
    app = Application(
        [HOSTED, load_platform()],
        served | dict.fromkeys(load_platform().routes, echo),
        KnownKeys(ADMIN),
        refusals=refused,
    )
    answer = call(app, "POST", PG + "a/upgrade-check", b"{")
    assert answer.status == 400
    assert "create-dbaas-pg-upgrade-check is not available yet: it comes with major upgrades" in answer.message
    assert "type pg only" in call(app, "POST", "/v2/dbaas-mysql/a").message
    assert call(app, "GET", "/pgherd/v1/organization").json["operation"] == "list-organizations"
    assert call(app, "GET", PG + "a/user/u/password/reveal").status == 200


def test_an_operation_without_handler_is_noticed_at_once() -> None:
    with pytest.raises(Fault, match="incomplete"):
        Application([HOSTED], {}, KnownKeys())
    with pytest.raises(Fault, match="no-such"):
        Application([HOSTED], dict.fromkeys([*HOSTED.routes, "no-such"], echo), KnownKeys())


def test_ambiguous_places_are_refused() -> None:
    router: Router[None] = Router()
    router.add("/v2", HOSTED.routes["get-dbaas-service-pg"], None)
    with pytest.raises(Fault):
        router.add("/v2", HOSTED.routes["get-dbaas-service-pg"], None)
    with pytest.raises(Fault, match="ambiguous"):
        router.add("/v2/dbaas-postgres", HOSTED.routes["list-zones"], None)


def test_bytes_are_answered_as_they_are() -> None:
    async def handler(request: Request) -> object:
        return b'{"zones":[]}'

    assert call(echoing(HOSTED, **{"list-zones": handler}), "GET", "/v2/zone").body == b'{"zones":[]}'
    assert json.loads(call(APP, "GET", "/v2/zone").body)["key"] == ""
