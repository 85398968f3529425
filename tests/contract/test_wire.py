"""What lies below the SDK: signatures, framing, repeated requests, and who may see what."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.contract.answers import document, operations
from tests.contract.conftest import Organization
from tests.contract.processes import stopped
from tests.plugins.instance import Instance, until

INVALID = "Invalid request signature"
DENIED = "Forbidden by role policy for dbaas - A deny rule matched. Rule index: 0"
GOOD = {"plan": "hobbyist-2"}


def message(answer: requests.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    text: str = answer.json()["message"]
    return text


def signature(secret: str, first: str, body: bytes, values: str, expires: int) -> str:
    """From the description in wire.md, not from anybody's code."""
    text = b"\n".join([first.encode(), body, values.encode(), b"", str(expires).encode()])
    return base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha256).digest()).decode()


class Wire:
    """Requests put together by hand."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.root = instance.endpoint.removesuffix("/v2")
        self.address = urlsplit(instance.endpoint)

    def authorization(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: tuple[str, str] | None = None,
        ahead: int = 600,
        names: str = "",
        values: str = "",
    ) -> str:
        """An Authorization header that expires in `ahead` seconds."""
        known, secret = key or self.instance.key
        expires = int(time.time()) + ahead
        listed = f",signed-query-args={names}" if names else ""
        signed = signature(secret, f"{method} {path}", body, values, expires)
        return f"EXO2-HMAC-SHA256 credential={known}{listed},expires={expires},signature={signed}"

    def send(self, method: str, target: str, body: bytes = b"", **options: Any) -> requests.Response:
        """Send it; `target` may hold a query, which is not signed unless `names` says so."""
        headers = options.pop("headers", {})
        headers = {"Authorization": self.authorization(method, target.partition("?")[0], body, **options)} | headers
        return self.plain(method, target, body, headers)

    def plain(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> requests.Response:
        """Send it with these headers."""
        request = requests.Request(method, self.root, data=body, headers=headers).prepare()
        request.url = self.root + target
        return self.instance.send(request)

    def talk(self, raw: bytes, answers: int = 1) -> list[tuple[int, dict[str, Any]]]:
        """Write these bytes to a connection; status and JSON of so many answers."""
        found = []
        with socket.create_connection((self.address.hostname, self.address.port), timeout=10) as connection:
            connection.sendall(raw)
            file = connection.makefile("rb")
            for _ in range(answers):
                status = int(file.readline().split()[1])
                head = {}
                while line := file.readline().strip():
                    name, _, value = line.decode().partition(":")
                    head[name.lower()] = value.strip()
                found.append((status, json.loads(file.read(int(head["content-length"])))))
        return found


@pytest.fixture
def wire(instance: Instance) -> Wire:
    """Requests put together by hand."""
    return Wire(instance)


class TestSignature:
    def test_by_the_description(self, wire: Wire) -> None:
        assert wire.send("GET", "/v2/dbaas-service").status_code == 200

    def test_java_expires_now(self, wire: Wire) -> None:
        assert wire.send("GET", "/v2/dbaas-service", ahead=0).status_code == 200

    def test_expired(self, wire: Wire) -> None:
        assert message(wire.send("GET", "/v2/dbaas-service", ahead=-3600), 403).startswith(INVALID)

    def test_query_arguments(self, wire: Wire) -> None:
        path = "/v2/dbaas-service"
        assert wire.send("GET", f"{path}?b=2&a=1", names="a;b", values="12").status_code == 200
        assert wire.send("GET", f"{path}?b=2&a=1", names="b;a", values="21").status_code == 200
        # Python lists an argument that has several values, and signs none of them
        assert wire.send("GET", f"{path}?a=1&a=2&b=3", names="a;b", values="3").status_code == 200
        # Java signs none at all
        assert wire.send("GET", f"{path}?a=1").status_code == 200
        assert message(wire.send("GET", f"{path}?a=1", names="a", values="2"), 403) == INVALID

    def test_what_the_official_signer_makes_of_a_query(self, instance: Instance) -> None:
        url = f"{instance.endpoint}/dbaas-service"
        for params in ({"a": "x y", "b": ["1", "2"]}, {"c": "é+&="}, {"empty": ""}):
            answer = instance.send(instance.sign(requests.Request("GET", url, params=params)))
            assert answer.status_code == 200, params

    @pytest.mark.parametrize("what", ["method", "path", "body", "key", "signature"])
    def test_tampered(self, wire: Wire, names: Callable[[], str], what: str) -> None:
        body, name = json.dumps(GOOD).encode(), names()
        path = f"/v2/dbaas-postgres/{name}"
        signed = {"method": "POST", "path": path, "body": body}
        if what in signed:
            other: dict[str, Any] = {"method": "PUT", "path": f"{path}x", "body": b'{"plan": "startup-4"}'}
            header = wire.authorization(**(signed | {what: other[what]}))
        else:
            header = wire.authorization(**signed, key=("EXO0123456789abcdef01234567", "s") if what == "key" else None)
        if what == "signature":
            header = header.replace(header[-44:], header[-44:][::-1].lstrip("=") + "=")
        assert message(wire.plain("POST", path, body, {"Authorization": header}), 403) == INVALID
        assert wire.send("GET", path).status_code == 404

    @pytest.mark.parametrize("header", [None, "", "Basic Zm9vOmJhcg==", "EXO2-HMAC-SHA256", "Exoscale-HMAC-SHA256 k:s"])
    def test_no_signature(self, wire: Wire, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header}
        assert message(wire.plain("GET", "/v2/dbaas-service", headers=headers), 403) == INVALID

    def test_zones_are_public(self, wire: Wire) -> None:
        assert wire.plain("GET", "/v2/zone").status_code == 200
        assert wire.plain("GET", "/v2/zone", headers={"Authorization": "nonsense"}).status_code == 200

    def test_nothing_else_is(self, wire: Wire) -> None:
        for method, _, operation_id, _ in operations():
            if operation_id == "list-zones":
                continue
            path = path_of(operation_id, "c-nobody")
            assert message(wire.plain(method, path), 403) == INVALID, operation_id


def path_of(operation_id: str, service: str) -> str:
    """A path of the operation, with `service` for every parameter but ids and types."""
    known = {"id": "6a0f4dd5-67ae-4b11-a4d5-0b0a57a0c6a1", "username": "avnadmin", "service-type-name": "pg"}
    for path, item in document()["paths"].items():
        for operation in item.values():
            if operation["operationId"] == operation_id:
                return "/v2" + re.sub(r"\{([^}]+)\}", lambda found: known.get(found[1], service), path)
    raise LookupError(operation_id)


class TestFraming:
    @pytest.mark.parametrize("body", [b"", b"{}", b" "])
    def test_an_empty_body_is_an_empty_object(self, wire: Wire, service: str, body: bytes) -> None:
        """The Python client sends no body at all where Go sends `{}`."""
        answer = wire.send("PUT", f"/v2/dbaas-postgres/{service}", body)
        assert answer.status_code == 200
        assert message(wire.send("POST", "/v2/dbaas-postgres/c-nobody", body), 400) == "plan: is required"

    def test_a_body_where_none_belongs(self, wire: Wire) -> None:
        path = "/v2/dbaas-service/c-nobody"
        assert message(wire.send("DELETE", path, b"{}"), 404) == "Service does not exist"
        assert "takes no body" in message(wire.send("DELETE", path, b'{"a": 1}'), 400)

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"{", "not valid JSON"),
            (b'{"plan": "hobbyist-2",}', "not valid JSON"),
            (b'{"plan": NaN}', "not valid JSON"),
            (b"\xff\xfe", "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
            (b"[]", "must be a JSON object"),
            (b"null", "must be a JSON object"),
            (b'"text"', "must be a JSON object"),
            (b'{"plan": "hobbyist-2", "plan": "startup-4"}', "twice"),
            (b'{"plan": "\\ud800"}', "surrogate"),
            (b'{"plan": "a\\u0000b"}', "NUL"),
            (b'{"work-mem": 1e400}', "too large"),
            (b'{"plan": 1}', "plan: must be a string"),
            (b'{"plan": null}', "plan: must be a string"),
            (b'{"plan": "hobbyist-2", "Plan": "x"}', "Plan: is not known"),
            (b'{"plan": "hobbyist-2", "maintenance": {"x": 1}}', "maintenance.x: is not known"),
            (b'{"plan": "hobbyist-2", "work-mem": 20.0}', "work-mem: must be an integer"),
            (b'{"plan": "hobbyist-2", "work-mem": 100000000000000000000}', "work-mem: must be an integer"),
        ],
    )
    def test_wrong_bodies(self, wire: Wire, body: bytes, text: str) -> None:
        assert text in message(wire.send("POST", "/v2/dbaas-postgres/c-nobody", body), 400)

    def test_a_large_body(self, wire: Wire) -> None:
        body = b'{"plan": "%s"}' % (b"x" * (1 << 20))
        assert "larger than" in message(wire.send("POST", "/v2/dbaas-postgres/c-nobody", body), 413)

    def test_a_large_body_in_chunks(self, wire: Wire) -> None:
        body, path = b"x" * (1 << 18), "/v2/dbaas-postgres/c-nobody"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {wire.authorization('POST', path, body * 5)}\r\n"
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(body), body) for _ in range(5))
        ((status, answer),) = wire.talk(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert status == 413 and "larger than" in answer["message"]

    def test_chunks(self, wire: Wire) -> None:
        body, path = b'{"plan": "startup-5"}', "/v2/dbaas-postgres/c-nobody"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {wire.authorization('POST', path, body)}\r\n"
        raw = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (
            body[:5],
            len(body) - 5,
            body[5:],
        )
        ((status, answer),) = wire.talk(raw)
        assert status == 400 and answer["message"].startswith("plan: must be one of")

    def test_a_client_that_asks_for_another_protocol(self, wire: Wire) -> None:
        """Java sends this with every plain request; the body counts, and the connection goes on."""
        body, path = b'{"plan": "startup-5"}', "/v2/dbaas-postgres/c-nobody"
        head = (
            f"POST {path} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: {len(body)}\r\nHost: x\r\n"
            "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
            f"Authorization: {wire.authorization('POST', path, body)}\r\n\r\n"
        )
        once = head.encode() + body
        for status, answer in wire.talk(once * 3, answers=3):
            assert status == 400 and answer["message"].startswith("plan: must be one of")

    def test_a_connection_serves_many_requests(self, wire: Wire) -> None:
        raw = b""
        for path, header in (("/v2/zone", ""), ("/v2/dbaas-service", "signed"), ("/v2/nothing", ""), ("/v2/zone", "")):
            signed = f"Authorization: {wire.authorization('GET', path)}\r\n" if header else ""
            raw += f"GET {path} HTTP/1.1\r\nHost: x\r\n{signed}\r\n".encode()
        assert [status for status, _ in wire.talk(raw, answers=4)] == [200, 200, 404, 200]

    def test_what_is_no_http(self, wire: Wire) -> None:
        ((status, answer),) = wire.talk(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert status == 400 and answer["message"]

    def test_unknown_paths(self, wire: Wire) -> None:
        paths = (
            "/",
            "/v2",
            "/v2/",
            "/v2/nothing",
            "/v1/zone",
            "/v2/dbaas-postgres",
            "/v2/dbaas-postgres/",
            "/v2//zone",
        )
        for path in paths:
            assert message(wire.send("GET", path), 404), path

    def test_wrong_methods(self, wire: Wire) -> None:
        answer = wire.send("PUT", "/v2/dbaas-service")
        assert "GET" in message(answer, 405) and "GET" in answer.headers["allow"]
        assert wire.send("PATCH", "/v2/dbaas-postgres/c-nobody", b"{}").status_code == 405

    @pytest.mark.parametrize("name", ["..%2F..%2Fetc", "%00", "a%0Ab", "%FF", "a'b", "%D0%B0", "x" * 4000, "%25"])
    def test_names_from_hell(self, wire: Wire, name: str) -> None:
        path = f"/v2/dbaas-postgres/{name}"
        assert wire.send("GET", path).status_code in (400, 404)
        assert wire.send("DELETE", path).status_code in (400, 404)
        assert wire.send("POST", path, b'{"plan": "hobbyist-2"}').status_code == 400


#: Operations of the contract that a later issue brings, with a body that the contract allows.
COMING: dict[str, dict[str, Any] | None] = {
    "create-dbaas-pg-upgrade-check": {"target-version": "16"},
    "get-dbaas-task": None,
    "stop-dbaas-pg-migration": None,
    "get-dbaas-migration-status": None,
    "create-dbaas-task-migration-check": {"source-service-uri": "postgres://a@b/c", "method": "dump"},
    "create-dbaas-integration": {"integration-type": "logs", "source-service": "a", "dest-service": "b"},
    "get-dbaas-integration": None,
    "update-dbaas-integration": {"settings": {}},
    "delete-dbaas-integration": None,
    "list-dbaas-integration-types": None,
    "list-dbaas-integration-settings": None,
}

SERVED = {
    "list-zones", "get-operation", "list-dbaas-services", "delete-dbaas-service", "list-dbaas-service-types",
    "get-dbaas-service-type", "get-dbaas-settings-pg", "get-dbaas-ca-certificate", "create-dbaas-service-pg",
    "get-dbaas-service-pg", "update-dbaas-service-pg", "delete-dbaas-service-pg", "reveal-dbaas-postgres-user-password",
    "create-dbaas-postgres-user", "delete-dbaas-postgres-user", "update-dbaas-postgres-allow-replication",
    "reset-dbaas-postgres-user-password", "create-dbaas-pg-database", "delete-dbaas-pg-database",
    "create-dbaas-pg-connection-pool", "update-dbaas-pg-connection-pool", "delete-dbaas-pg-connection-pool",
    "start-dbaas-pg-maintenance", "get-dbaas-service-logs", "get-dbaas-service-metrics",
}  # fmt: skip


class TestNotAvailable:
    @pytest.mark.parametrize("operation_id", COMING)
    def test_of_postgres(self, wire: Wire, service: str, operation_id: str) -> None:
        method = next(method for method, _, name, _ in operations() if name == operation_id)
        body = b"" if COMING[operation_id] is None else json.dumps(COMING[operation_id]).encode()
        text = message(wire.send(method, path_of(operation_id, service), body), 400)
        assert text.startswith(f"{operation_id} is not available yet: it comes ")

    def test_every_other_operation(self, wire: Wire) -> None:
        """Whatever the contract has for databases is served or refused with a 4xx that says so."""
        for method, _, operation_id, _ in operations():
            if operation_id not in SERVED:
                assert "is not available" in message(wire.send(method, path_of(operation_id, "x1")), 400), operation_id


class TestRepeatedRequests:
    """Go clients sign once and send the same request again on drops and 5xx."""

    def _signed(
        self, instance: Instance, name: str, method: str = "POST", body: Any = GOOD
    ) -> requests.PreparedRequest:
        url = f"{instance.endpoint}/dbaas-postgres/{name}"
        return instance.sign(requests.Request(method, url, json=body))

    def test_one_after_the_other(self, instance: Instance, name: str) -> None:
        request = self._signed(instance, name)
        answers = [instance.send(request) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert len({answer.json()["id"] for answer in answers}) == 1
        self._taken(instance, name)

    def _taken(self, instance: Instance, name: str) -> None:
        """Signed anew, it is another request."""
        request = self._signed(instance, name, body={"plan": "hobbyist-2", "work-mem": 1})
        assert message(instance.send(request), 409) == "Service name is already taken"

    def test_all_at_once(self, instance: Instance, name: str) -> None:
        request, answers = self._signed(instance, name), []
        gate = threading.Barrier(6)

        def send() -> None:
            gate.wait()
            answers.append(instance.send(request))

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
        assert len({answer.json()["id"] for answer in answers}) == 1
        listed = instance.client().list_dbaas_services()["dbaas-services"]
        assert [row["name"] for row in listed].count(name) == 1
        instance.finished(answers[0].json())

    def test_different_signatures_at_once(self, instance: Instance, name: str) -> None:
        """One gets the service, the others learn that the name is taken."""
        requests_ = [self._signed(instance, name, body={**GOOD, "work-mem": size}) for size in (1, 2, 3, 4)]
        answers: list[requests.Response] = []
        threads = [threading.Thread(target=lambda r=r: answers.append(instance.send(r))) for r in requests_]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409], [a.text for a in answers]

    def test_a_delete_sent_again_spares_the_next_service(self, instance: Instance, name: str) -> None:
        first = self._signed(instance, name)
        instance.finished(instance.send(first).json())
        delete = self._signed(instance, name, "DELETE", None)
        deleted = instance.send(delete).json()
        instance.finished(deleted)
        assert instance.send(first).json()["state"] == "success", "the create of long ago, not a new one"
        assert instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 404
        second = self._signed(instance, name, body={"plan": "hobbyist-2", "work-mem": 2})
        instance.finished(instance.send(second).json())
        assert instance.send(delete).json()["id"] == deleted["id"]
        assert instance.call("GET", f"/v2/dbaas-postgres/{name}").json()["state"] == "running"

    def test_an_update_sent_again_does_not_undo_the_next(self, instance: Instance, service: str) -> None:
        first = self._signed(instance, service, "PUT", {"work-mem": 11})
        earlier = instance.send(first).json()
        instance.send(self._signed(instance, service, "PUT", {"work-mem": 12}))
        assert instance.send(first).json()["id"] == earlier["id"]
        assert instance.call("GET", f"/v2/dbaas-postgres/{service}").json()["work-mem"] == 12

    def test_a_refused_request_may_be_sent_again(self, instance: Instance, names: Callable[[], str]) -> None:
        """Only accepted requests are remembered: nothing happened, so nothing is to be protected."""
        name = names()
        update = self._signed(instance, name, "PUT", {"work-mem": 3})
        assert message(instance.send(update), 404) == "Service does not exist"
        instance.create(name)
        assert instance.send(update).status_code == 200
        assert instance.call("GET", f"/v2/dbaas-postgres/{name}").json()["work-mem"] == 3


class TestOrganizations:
    def test_nothing_of_another_organization_can_be_told_from_nothing(
        self, instance: Instance, service: str, organization: Organization
    ) -> None:
        key = organization.admin
        operation = instance.call("PUT", f"/v2/dbaas-postgres/{service}", {}).json()["id"]
        before = instance.call("GET", f"/v2/dbaas-postgres/{service}").json()
        for method, path, body in (
            ("GET", "/v2/dbaas-postgres/{}", None),
            ("PUT", "/v2/dbaas-postgres/{}", {"plan": "startup-4"}),
            ("DELETE", "/v2/dbaas-postgres/{}", None),
            ("DELETE", "/v2/dbaas-service/{}", None),
            ("GET", "/v2/dbaas-postgres/{}/user/avnadmin/password/reveal", None),
        ):
            theirs, nobody_s = (instance.call(method, path.format(name), body, key) for name in (service, "c-nobody"))
            assert theirs.status_code == nobody_s.status_code == 404, path
            assert theirs.json() == nobody_s.json() == {"message": "Service does not exist"}, path
        nothing = "6a0f4dd5-67ae-4b11-a4d5-0b0a57a0c6a1"
        theirs, nobody_s = (instance.call("GET", f"/v2/operation/{id_}", key=key) for id_ in (operation, nothing))
        assert theirs.status_code == nobody_s.status_code == 404
        assert theirs.json() == nobody_s.json()
        assert instance.call("GET", "/v2/dbaas-service", key=key).json() == {"dbaas-services": []}
        assert instance.call("GET", f"/v2/dbaas-postgres/{service}").json() == before

    def test_the_same_name_in_two_organizations(
        self, instance: Instance, service: str, organization: Organization
    ) -> None:
        client, own = instance.client(organization.admin), instance.client()
        done = instance.call("POST", f"/v2/dbaas-postgres/{service}", GOOD, organization.admin).json()
        until(lambda: client.get_dbaas_service_pg(name=service)["state"] == "running", 60, "it runs")
        passwords = {
            each.reveal_dbaas_postgres_user_password(service_name=service, username="avnadmin")["password"]
            for each in (client, own)
        }
        ports = {each.get_dbaas_service_pg(name=service)["uri-params"]["port"] for each in (client, own)}
        certificates = {each.get_dbaas_ca_certificate()["certificate"] for each in (client, own)}
        assert len(passwords) == len(ports) == len(certificates) == 2
        assert done["state"] in ("pending", "success")
        refused = instance.call("DELETE", f"/pgherd/v1/organization/{organization.name}")
        assert "still has services" in message(refused, 409)
        client.delete_dbaas_service(name=service)
        assert own.get_dbaas_service_pg(name=service)["state"] == "running"

        def gone() -> bool:
            return instance.call("DELETE", f"/pgherd/v1/organization/{organization.name}").status_code == 200

        until(gone, 30, "the organization can be deleted once its service is gone from the host")
        assert message(instance.call("GET", "/v2/dbaas-service", key=organization.admin), 403) == INVALID

    def test_an_operation_id_must_be_one(self, wire: Wire) -> None:
        assert message(wire.send("GET", "/v2/operation/nonsense"), 400) == "id: must be a UUID"

    def test_a_revoked_key_is_refused_at_once(self, instance: Instance, organization: Organization) -> None:
        key = organization.key("admin")
        assert instance.call("GET", "/v2/dbaas-service", key=key).status_code == 200
        assert instance.call("DELETE", f"/pgherd/v1/api-key/{key[0]}").status_code == 200
        assert message(instance.call("GET", "/v2/dbaas-service", key=key), 403) == INVALID

    def test_a_key_s_secret_is_shown_once(self, instance: Instance, organization: Organization) -> None:
        listed = instance.call("GET", "/pgherd/v1/api-key", key=organization.admin)
        assert [row["key"] for row in listed.json()["api-keys"]] == [organization.admin[0]]
        assert organization.admin[1] not in listed.text

    def test_an_admin_stays_inside(self, instance: Instance, organization: Organization) -> None:
        key = organization.admin
        for method, path in (("GET", "organization"), ("GET", "instance"), ("GET", "host")):
            assert "operator" in message(instance.call(method, f"/pgherd/v1/{path}", key=key), 403)
        assert "operator" in message(instance.call("POST", "/pgherd/v1/organization", {"name": "mine"}, key), 403)
        body = {"name": "x", "role": "operator"}
        assert "operator" in message(instance.call("POST", "/pgherd/v1/api-key", body, key), 403)
        own = instance.call("GET", "/pgherd/v1/api-key").json()["api-keys"]
        elsewhere = next(row["organization"] for row in own if row["role"] == "operator")
        body = {"name": "x", "organization": elsewhere}
        assert message(instance.call("POST", "/pgherd/v1/api-key", body, key), 404) == "Organization does not exist."
        assert instance.call("DELETE", f"/pgherd/v1/api-key/{instance.key[0]}", key=key).status_code == 404
        assert instance.call("GET", "/v2/dbaas-service").status_code == 200


class TestReadOnly:
    def test_reads_and_nothing_else(self, instance: Instance, organization: Organization) -> None:
        name = "readable"
        created = instance.call("POST", f"/v2/dbaas-postgres/{name}", GOOD, organization.admin).json()
        key = organization.key("read-only")
        for path in (
            f"dbaas-postgres/{name}", "dbaas-service", "dbaas-service-type", "dbaas-service-type/pg",
            "dbaas-settings-pg", "dbaas-ca-certificate", "zone", f"operation/{created['id']}",
        ):  # fmt: skip
            assert instance.call("GET", f"/v2/{path}", key=key).status_code == 200, path
        for method, path, body in (
            ("POST", "dbaas-postgres/another", GOOD),
            ("PUT", f"dbaas-postgres/{name}", {"plan": "startup-4"}),
            ("DELETE", f"dbaas-postgres/{name}", None),
            ("DELETE", f"dbaas-service/{name}", None),
            ("GET", f"dbaas-postgres/{name}/user/avnadmin/password/reveal", None),
            ("PUT", f"dbaas-postgres/{name}/user/avnadmin/password/reset", {}),
            ("POST", f"dbaas-postgres/{name}/user", {"username": "somebody"}),
        ):
            assert message(instance.call(method, f"/v2/{path}", body, key), 403) == DENIED, path
        for path in ("dbaas-service-logs", "dbaas-service-metrics"):
            assert instance.call("POST", f"/v2/{path}/{name}", {}, key).status_code == 200, path
        for method, path, body in (("GET", "api-key", None), ("POST", "api-key", {"name": "x"}), ("GET", "host", None)):
            assert instance.call(method, f"/pgherd/v1/{path}", body, key).status_code == 403, path
        answer = instance.call("DELETE", f"/v2/dbaas-service/{name}", key=organization.admin)
        assert answer.status_code == 200


class TestOperations:
    def test_a_pending_one_is_waited_for(self, instance: Instance, name: str) -> None:
        """While no worker runs nothing ends: the answer comes after about two seconds, as pending."""
        with stopped(instance, "worker"):
            start = time.monotonic()
            operation = instance.call("POST", f"/v2/dbaas-postgres/{name}", GOOD).json()
            held = time.monotonic() - start
            assert operation["state"] == "pending" and 1.5 < held < 4
            start = time.monotonic()
            assert instance.call("GET", f"/v2/operation/{operation['id']}").json()["state"] == "pending"
            assert 1.5 < time.monotonic() - start < 4
        waits = []

        def ended() -> bool:
            start = time.monotonic()
            state = instance.call("GET", f"/v2/operation/{operation['id']}").json()["state"]
            waits.append(time.monotonic() - start)
            return bool(state == "success")

        until(ended, 60, "the worker goes on with it")
        assert max(waits) < 4
        start = time.monotonic()
        assert instance.call("GET", f"/v2/operation/{operation['id']}").json()["state"] == "success"
        assert time.monotonic() - start < 1, "an ended one is answered at once"
