"""Every answer that a test of this directory gets is checked against the OpenAPI document."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from exoscale.api.exceptions import ExoscaleAPIException
from exoscale.api.v2 import Client

from tests.contract.answers import check
from tests.plugins.instance import Instance


@pytest.fixture(scope="module", autouse=True)
def checked(instance: Instance) -> Iterator[None]:
    """Look at every answer while a module of this directory runs."""
    instance.on_response = check
    yield
    instance.on_response = None


@pytest.fixture
def client(instance: Instance) -> Client:
    """The official SDK's client with the operator's key."""
    return instance.client()


@pytest.fixture(scope="module")
def service(instance: Instance, checked: None) -> Iterator[str]:
    """A running service for all tests of a module that leave it as it is."""
    name = instance.create()
    yield name
    instance.client().delete_dbaas_service(name=name)


@pytest.fixture
def names(instance: Instance) -> Iterator[Callable[[], str]]:
    """Names for services; what still has one of them at the end is deleted."""
    given: list[str] = []

    def name() -> str:
        given.append(f"c-{uuid.uuid4().hex[:10]}")
        return given[-1]

    yield name
    client = instance.client()
    for left in given:
        with contextlib.suppress(ExoscaleAPIException):
            if client.get_dbaas_service_pg(name=left)["termination-protection"]:
                client.update_dbaas_service_pg(name=left, termination_protection=False)
            client.delete_dbaas_service(name=left)


@pytest.fixture
def name(names: Callable[[], str]) -> str:
    """One such name."""
    return names()


class Organization:
    """An organization of a test's own with its keys."""

    def __init__(self, instance: Instance, name: str) -> None:
        self._instance, self.name = instance, name
        answer = instance.call("POST", "/pgherd/v1/organization", {"name": name})
        assert answer.status_code == 200, answer.text
        self.id: str = answer.json()["id"]
        self.admin = self.key("admin")

    def key(self, role: str) -> tuple[str, str]:
        """A new key of this organization and its secret."""
        body = {"name": f"{role} of a test", "organization": self.name, "role": role}
        answer: Any = self._instance.call("POST", "/pgherd/v1/api-key", body).json()
        return answer["key"], answer["secret"]


@pytest.fixture
def organization(instance: Instance) -> Organization:
    """Another organization than the operator's."""
    return Organization(instance, f"o-{uuid.uuid4().hex[:10]}")
