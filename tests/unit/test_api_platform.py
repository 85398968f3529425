"""/pgherd/v1: who may do what, and answers that obey our own document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pgherd.api.app import Application
from pgherd.api.platform import Platform
from pgherd.contract.document import load_platform
from pgherd.errors import NotFound
from pgherd.settings import Settings
from pgherd.store.keys import Key
from tests.plugins.wire import ADMIN, OPERATOR, ORGANIZATION, READER, Answer, KnownKeys, call, echo

OWN = load_platform()
BORN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Store:
    """Organizations and keys in memory, as store.platform answers them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def organizations(self) -> list[dict[str, Any]]:
        return [{"id": ORGANIZATION, "name": "acme", "created_at": BORN, "services": 3}]

    async def create_organization(self, name: str) -> dict[str, Any]:
        self.calls.append(("create_organization", name))
        return {"id": ORGANIZATION, "name": name, "created_at": BORN, "ca_certificate": "x", "ca_key": b"secret"}

    async def delete_organization(self, name: str) -> None:
        self.calls.append(("delete_organization", name))

    async def keys(self, organization: str | None) -> list[dict[str, Any]]:
        self.calls.append(("keys", organization))
        row = {"key": "EXOa", "name": "ci", "role": "admin", "organization": "acme", "created_at": BORN}
        return [row | {"revoked_at": None}, row | {"revoked_at": BORN}]

    async def create_key(self, organization: str, name: str, role: str) -> tuple[str, str]:
        self.calls.append(("create_key", organization, name, role))
        return "EXOnew", "shown-once"

    async def revoke_key(self, key: str, organization: str | None = None) -> None:
        self.calls.append(("revoke_key", key, organization))
        if key == "EXOother":
            raise NotFound("API key does not exist.")

    async def hosts(self) -> list[dict[str, Any]]:
        facts = {"memory_bytes": 1 << 30, "cores": 2, "versions": {"15": "15.18"}, "listeners": [22]}
        facts["extensions"] = {"15": {"hstore": "1.8", "vector": ""}}
        facts["extensions"] = {"15": {"hstore": "1.8", "vector": ""}}
        host = {"id": ORGANIZATION, "name": "local", "login": "host_local", "public_key": "k", "seen_at": BORN}
        new = {"id": ORGANIZATION, "name": "b", "facts": None, "seen_at": None, "services": 0, "memory_promised": 0}
        lost = {"id": ORGANIZATION, "report": {"spec": 1}, "seen_at": BORN, "doomed": False}
        host |= {"facts": facts, "services": 3, "memory_promised": 7, "unknown": [lost]}
        return [host, new | {"unknown": []}]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def app(store: Store) -> Application:
    handlers = dict.fromkeys(OWN.routes, echo) | Platform(Settings(), store).handlers()
    return Application([OWN], handlers, KnownKeys(ADMIN, READER, OPERATOR))


def ask(app: Application, key: Key | None, operation: str, *values: str, **body: Any) -> Answer:
    route = OWN.routes[operation]
    target = route.path.format(**dict(zip(route.params, values, strict=True)))
    answer = call(app, route.method, target, json.dumps(body).encode() if body else b"", key=key)
    if answer.status == 200:
        assert operation == "get-platform-openapi" or route.closed_answer.faults(answer.json) == []
    return answer


def test_document_is_public_and_describes_each_operation(app: Application) -> None:
    document = ask(app, None, "get-platform-openapi").json
    named = {operation["operationId"] for item in document["paths"].values() for operation in item.values()}
    assert named == set(OWN.routes)


ALL = [
    ("get-instance", (), {}),
    ("list-organizations", (), {}),
    ("create-organization", (), {"name": "acme-2"}),
    ("delete-organization", ("acme",), {}),
    ("list-hosts", (), {}),
    ("list-api-keys", (), {}),
    ("create-api-key", (), {"name": "ci", "organization": "acme", "role": "read-only"}),
    ("revoke-api-key", ("EXOa",), {}),
]


@pytest.mark.parametrize(("operation", "values", "body"), ALL)
def test_roles(app: Application, operation: str, values: tuple[str, ...], body: dict[str, Any]) -> None:
    assert ask(app, OPERATOR, operation, *values, **body).status == 200
    assert ask(app, ADMIN, operation, *values, **body).status == (200 if "api-key" in operation else 403)
    assert ask(app, READER, operation, *values, **body).status == 403
    assert ask(app, None, operation, *values, **body).status == 403


def test_admin_stays_in_its_organization(app: Application, store: Store) -> None:
    assert ask(app, ADMIN, "create-api-key", name="x", organization="other").status == 404
    assert ask(app, ADMIN, "create-api-key", name="x", role="operator").status == 403
    assert ask(app, ADMIN, "create-api-key", name="x").json["secret"] == "shown-once"
    assert ask(app, ADMIN, "revoke-api-key", "EXOother").status == 404
    ask(app, ADMIN, "list-api-keys")
    assert store.calls == [
        ("create_key", "acme", "x", "admin"),
        ("revoke_key", "EXOother", "acme"),
        ("keys", "acme"),
    ]


def test_operator_reaches_all(app: Application, store: Store) -> None:
    ask(app, OPERATOR, "list-api-keys")
    ask(app, OPERATOR, "revoke-api-key", "EXOa")
    ask(app, OPERATOR, "create-api-key", name="x", organization="other", role="operator")
    assert store.calls == [("keys", None), ("revoke_key", "EXOa", None), ("create_key", "other", "x", "operator")]


def test_nothing_secret_and_no_null_in_answers(app: Application) -> None:
    made = ask(app, OPERATOR, "create-organization", name="acme").json
    assert made == {"id": str(ORGANIZATION), "name": "acme", "created-at": "2026-01-02T03:04:05Z", "services": 0}
    valid, revoked = ask(app, OPERATOR, "list-api-keys").json["api-keys"]
    assert "revoked-at" not in valid
    assert revoked["revoked-at"] == "2026-01-02T03:04:05Z"
    local, new = ask(app, OPERATOR, "list-hosts").json["hosts"]
    assert (local["memory"], local["versions"], local["services"]) == (1 << 30, {"15": "15.18"}, 3)
    assert set(new) == {"id", "name", "services", "memory-promised", "unknown-nodes"}
    assert local["unknown-nodes"] == [{"id": str(ORGANIZATION), "seen-at": "2026-01-02T03:04:05Z", "state": "unknown"}]


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "1a", "a" * 64, "a/b"])
def test_names_of_organizations(app: Application, name: str) -> None:
    assert ask(app, OPERATOR, "create-organization", name=name).status == 400


def test_instance(app: Application) -> None:
    got = ask(app, OPERATOR, "get-instance").json
    assert (got["zone"], got["services"], got["organizations"], got["hosts"]) == ("ch-gva-2", 3, 1, 2)
