"""Backups as users see them: the official SDK, our own endpoints, the CLI."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.plugins.instance import Instance, until


@pytest.fixture(scope="module")
def service(instance: Instance) -> str:
    return instance.create(plan="startup-4")


def listed(instance: Instance, name: str) -> dict[str, Any]:
    answer = instance.call("GET", f"/pgherd/v1/service/{name}/backup")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_backup_by_hand_is_seen_everywhere(instance: Instance, service: str) -> None:
    instance.sql(service, "create table t as select generate_series(1, 100000) as i")
    answer = instance.call("POST", f"/pgherd/v1/service/{service}/backup", {})
    assert answer.status_code == 200, answer.text
    assert instance.finished(answer.json())["state"] == "success"

    [backup] = listed(instance, service)["backups"]
    assert (backup["type"], backup["damaged"]) == ("full", False)
    shown = instance.client().get_dbaas_service_pg(name=service)
    assert shown["backups"] == [
        {"backup-name": backup["name"], "backup-time": backup["time"], "data-size": backup["size"]}
    ]
    assert shown["state"] == "running"

    done = instance.run("backup", "create", service)
    assert "incremental" in done.stdout and "Can be restored to any time from" in done.stderr
    found = json.loads(instance.run("backup", "list", service, "-o", "json").stdout)
    assert [one["type"] for one in found["backups"]] == ["full", "incremental"]
    assert found["window"]["earliest"] == backup["time"] <= found["window"]["latest"]


def test_nothing_waits_for_a_backup(instance: Instance, service: str) -> None:
    """Settings change while a backup runs, and the backup ends well all the same."""
    with ThreadPoolExecutor(1) as beside:
        backup = beside.submit(instance.run, "backup", "create", service, "--full")
        until(lambda: "running" in listed(instance, service), 20, "the backup runs")
        again = instance.call("POST", f"/pgherd/v1/service/{service}/backup", {})
        assert (again.status_code, "already running" in again.text) == (409, True), again.text
        changed = instance.client().update_dbaas_service_pg(name=service, work_mem=7)
        assert instance.finished(changed)["state"] == "success"
        assert instance.sql(service, "show work_mem") == [("7MB",)]
        assert backup.result().returncode == 0
    assert listed(instance, service)["backups"][-1]["type"] == "full"


def test_refusals(instance: Instance) -> None:
    assert instance.call("GET", "/pgherd/v1/service/none/backup").status_code == 404
    assert instance.call("POST", "/pgherd/v1/service/none/backup", {}).status_code == 404
    wrong = instance.call("POST", "/pgherd/v1/service/none/backup", {"full": "yes"})
    assert (wrong.status_code, "full" in wrong.text) == (400, True)


def test_the_repository_goes_with_the_service(instance: Instance) -> None:
    name = instance.create()
    assert "full" in instance.run("backup", "create", name).stdout
    before = {path.name for path in (instance.home / "backups").iterdir()}
    instance.delete(name)
    after = {path.name for path in (instance.home / "backups").iterdir()}
    assert len(before - after) == 1 and not after - before
    assert instance.call("GET", f"/pgherd/v1/service/{name}/backup").status_code == 404
