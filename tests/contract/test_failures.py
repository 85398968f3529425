"""Operations that cannot succeed or do not end, and requests beyond the limits."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import requests

from tests.contract.answers import check
from tests.contract.conftest import Organization
from tests.contract.processes import metadata, stopped
from tests.plugins.instance import Instance, running_instance, until

GOOD = {"plan": "hobbyist-2"}


def create(instance: Instance, name: str, body: Any = GOOD, key: tuple[str, str] | None = None) -> requests.Response:
    return instance.call("POST", f"/v2/dbaas-postgres/{name}", body, key)


def get(instance: Instance, name: str, key: tuple[str, str] | None = None) -> dict[str, Any]:
    answer = instance.call("GET", f"/v2/dbaas-postgres/{name}", key=key)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def let_pass_deadline(instance: Instance, operation: dict[str, Any]) -> None:
    metadata(instance, f"update operation set deadline = now() - interval '1 second' where id = '{operation['id']}'")


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """Somebody else listens on this port, on every address."""
    with socket.create_server(("0.0.0.0", port)):
        yield


class TestTimeout:
    def test_a_passed_deadline_ends_the_operation_while_no_worker_runs(self, instance: Instance, name: str) -> None:
        with stopped(instance, "worker"):
            operation = create(instance, name).json()
            assert operation["state"] == "pending"
            assert get(instance, name)["state"] == "rebuilding"
            let_pass_deadline(instance, operation)
            start = time.monotonic()
            ended = instance.call("GET", f"/v2/operation/{operation['id']}").json()
            assert (ended["state"], ended["reason"]) == ("timeout", "unavailable")
            assert "did not end in time" in ended["message"]
            assert time.monotonic() - start < 1
        again = instance.call("GET", f"/v2/operation/{operation['id']}").json()
        assert again == ended, "an end is final"
        self._is_powered_off(instance, name, "did not end in time")
        answer = instance.call("PUT", f"/v2/dbaas-postgres/{name}", {"work-mem": 2})
        assert answer.status_code == 409 and "was not created" in answer.json()["message"]
        instance.delete(name)
        assert create(instance, name, {**GOOD, "work-mem": 2}).status_code == 200
        until(lambda: get(instance, name)["state"] == "running", 60, "the name can be used again")

    @staticmethod
    def _is_powered_off(instance: Instance, name: str, words: str) -> None:
        shown = get(instance, name)
        assert shown["state"] == "poweroff"
        (notice,) = shown["notifications"]
        assert notice["level"] == "warning" and words in notice["message"]

    def test_a_delete_ends_a_create_that_nobody_carries_out(self, instance: Instance, name: str) -> None:
        with stopped(instance, "worker"):
            created = create(instance, name).json()
            deleted = instance.call("DELETE", f"/v2/dbaas-service/{name}").json()
            assert deleted["state"] == "pending"
            ended = instance.call("GET", f"/v2/operation/{created['id']}").json()
            assert (ended["state"], ended["reason"]) == ("failure", "interrupted")
            assert ended["message"] == "The service was deleted."
            assert instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 404
        assert instance.finished(deleted)["state"] == "success"

    def test_a_delete_that_timed_out_is_finished_all_the_same(self, instance: Instance, name: str) -> None:
        instance.create(name)
        with stopped(instance, "worker"):
            deleted = instance.call("DELETE", f"/v2/dbaas-service/{name}").json()
            let_pass_deadline(instance, deleted)
            ended = instance.call("GET", f"/v2/operation/{deleted['id']}").json()
            assert ended["state"] == "timeout"
        left = f"select count(*) from service where name = '{name}' and cleared_at is null"
        until(lambda: metadata(instance, left) == "0", 30, "a reconciler finishes the delete")


class TestHosts:
    def test_a_create_waits_for_its_host(self, instance: Instance, name: str) -> None:
        with stopped(instance, "agent"):
            operation = create(instance, name).json()
            assert operation["state"] == "pending"
            shown = get(instance, name)
            assert shown["state"] == "rebuilding"
            assert [node["state"] for node in shown["node-states"]] == ["setting_up_vm"]
            assert (shown["users"], shown["databases"]) == ([], []), "clients take an empty list for `not ready`"
        assert instance.finished(operation)["state"] == "success"
        assert get(instance, name)["databases"] == ["defaultdb"]

    def test_a_delete_is_accepted_while_the_host_is_away(self, instance: Instance, name: str) -> None:
        instance.create(name)
        with stopped(instance, "agent"):
            deleted = instance.call("DELETE", f"/v2/dbaas-service/{name}").json()
            assert deleted["state"] == "pending"
            assert instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 404
            again = create(instance, name, {**GOOD, "work-mem": 2}).json()
            assert again["state"] == "pending", "the name is free at once"
        assert instance.finished(deleted)["state"] == "success"
        assert instance.finished(again)["state"] == "success"
        assert instance.sql(name, "show work_mem") == [("2MB",)]


class TestFailure:
    def test_a_create_that_cannot_succeed(self, instance: Instance, name: str) -> None:
        """Somebody took the port between the host's look and the start of PostgreSQL."""
        before = set(instance.node_directories())
        with contextlib.ExitStack() as stack:
            with stopped(instance, "agent"):
                operation = create(instance, name).json()
                assert operation["state"] == "pending"
                port = int(get(instance, name)["uri-params"]["port"])
                stack.enter_context(listening(port))
            ended = instance.finished(operation)
            assert (ended["state"], ended["reason"]) == ("failure", "conflict")
            words = f"Another program listens on port {port}."
            assert words in ended["message"]
            shown = get(instance, name)
            assert shown["state"] == "poweroff"
            (notice,) = shown["notifications"]
            assert notice["level"] == "warning" and words in notice["message"]
            (node,) = shown["node-states"]
            assert node["state"] == "unknown" and words in node["reason"]
            listed = instance.call("GET", "/v2/dbaas-service").json()["dbaas-services"]
            assert [row["state"] for row in listed if row["name"] == name] == ["poweroff"]
        instance.delete(name)
        assert set(instance.node_directories()) <= before
        assert create(instance, name, {**GOOD, "work-mem": 2}).status_code == 200
        until(lambda: get(instance, name)["state"] == "running", 60, "the name can be used again")


class TestLimits:
    def test_of_an_organization_of_the_host_and_of_the_ports(self) -> None:
        """Each refusal is a 4xx with the numbers, and makes nothing."""
        options = {"services_per_organization": "2", "host_overcommit_percent": "200", "port_rest_seconds": "600"}
        with running_instance(**options, warm_pool="1", service_ports="31600-31611") as tight:
            tight.on_response = check
            text = self._refused(tight, "huge", {"plan": "startup-225"})
            assert "225 GiB more do not fit" in text and "host_overcommit_percent" in text
            for name in ("first", "second"):
                assert create(tight, name).status_code == 200
            words = "The organization already has 2 of at most 2 services (setting services_per_organization)."
            assert self._refused(tight, "third") == f"{words} Delete one first."
            other = Organization(tight, "other")
            assert create(tight, "first", key=other.admin).status_code == 200
            words = "No free ports: every block of 31600-31611 is taken or rests for 600 s after a delete"
            assert self._refused(tight, "second", key=other.admin).startswith(words)
            tight.delete("first")
            assert self._refused(tight, "second", key=other.admin).startswith(words)

    @staticmethod
    def _refused(tight: Instance, name: str, body: Any = GOOD, key: tuple[str, str] | None = None) -> str:
        answer = create(tight, name, body, key)
        assert answer.status_code == 409, answer.text
        assert tight.call("GET", f"/v2/dbaas-postgres/{name}", key=key).status_code == 404
        text: str = answer.json()["message"]
        return text
