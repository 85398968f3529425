"""Proving backups as users see it: by hand, what is shown of it, and how damage is told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.processes import metadata
from tests.plugins.instance import Instance, until

pytestmark = pytest.mark.repository


@pytest.fixture(scope="module")
def service(instance: Instance) -> str:
    name = instance.create()
    instance.sql(name, "create table t as select generate_series(1, 1000) as i")
    again = instance.call("POST", f"/pgherd/v1/service/{name}/verification")
    assert (again.status_code, "no backup yet" in again.text) == (409, True), again.text
    instance.run("backup", "create", name)
    return name


def listed(instance: Instance, name: str) -> dict[str, Any]:
    found: dict[str, Any] = instance.call("GET", f"/pgherd/v1/service/{name}/backup").json()
    return found


def test_a_flipped_bit_and_none(instance: Instance, service: str) -> None:
    """The operation fails with what is damaged and which times cannot be restored; GET warns until it is over."""
    files = instance.stored(service)
    bundle = max(files.names("backup/main/2"), key=lambda name: len(files.read(name)) if "/bundle/" in name else 0)
    files.flip(bundle)
    done = instance.run("backup", "verify", service, check=False)
    assert done.returncode == 1 and "is damaged" in done.stderr and "No point in time can be restored" in done.stderr
    [warning] = instance.client().get_dbaas_service_pg(name=service)["notifications"]
    assert warning["level"] == "warning" and "is damaged" in warning["message"]
    assert warning["metadata"]["kind"] == "backups-damaged"
    listing = instance.run("backup", "list", service)
    assert "damaged" in listing.stderr and "No point in time" in listing.stderr
    events = instance.call("GET", "/pgherd/v1/event?limit=20").json()["events"]
    assert any(event["command"] == "verify" and event["subject"] == service for event in events)
    asked = next(event for event in events if event["command"] == "verify-backups")
    assert (asked["result"], asked["outcome"]) == ("accepted", "failure")

    files.flip(bundle)
    done = instance.run("backup", "verify", service)
    assert "sound" in done.stdout and "3 databases, 1 tables" in done.stdout
    found = listed(instance, service)
    proof = found["verification"]
    assert (proof["state"], proof["backup"], proof["problems"]) == ("sound", found["backups"][-1]["name"], [])
    assert found["backups"][-1]["verified-at"] == proof["at"] and proof["lsn"]
    assert "VERIFIED" in instance.run("backup", "list", service).stdout
    assert instance.client().get_dbaas_service_pg(name=service)["notifications"] == []


def test_the_schedule(instance: Instance, service: str) -> None:
    """A service whose last proof is a week old gets another one, and only one at a time on the host."""
    metadata(instance, f"update verification set at = now() - interval '8 days' where service_id in"
                       f" (select id from service where name = '{service}')")  # fmt: skip
    metadata(instance, "delete from operation where kind = 'verify' and state <> 'pending'")

    def again() -> bool:
        at = metadata(instance, f"select at > now() - interval '1 hour' from verification where service_id in"
                                f" (select id from service where name = '{service}')")  # fmt: skip
        return at == "t"

    until(again, 90, "the proof was repeated")


def test_a_delete_ends_a_proof(instance: Instance, service: str) -> None:
    operation = instance.call("POST", f"/pgherd/v1/service/{service}/verification").json()
    until(lambda: "verifying" in listed(instance, service), 20, "the proof runs")
    twice = instance.call("POST", f"/pgherd/v1/service/{service}/verification")
    assert (twice.status_code, "already being verified" in twice.text) == (409, True)
    instance.delete(service)
    ended = instance.client().get_operation(id=operation["id"])
    assert (ended["state"], ended["reason"]) == ("failure", "interrupted")
    assert instance.processes("data/proof") == []
