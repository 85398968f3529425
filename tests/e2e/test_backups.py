"""Backups as users see them: the official SDK, our own endpoints, the CLI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.plugins.instance import Instance, running_instance, until
from tests.plugins.objects import Bucket

pytestmark = pytest.mark.repository


@pytest.fixture(scope="module", autouse=True)
def untouched(instance: Instance) -> str:
    """A service that is there from the first of these tests on."""
    return instance.create()


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
    first = datetime.fromisoformat(backup["time"]) + timedelta(seconds=1)
    assert datetime.fromisoformat(found["window"]["earliest"]) == first
    assert found["window"]["earliest"] <= found["window"]["latest"]


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
    before = {path.name for path in instance.home.glob("backups/*-*")}
    instance.delete(name)
    after = {path.name for path in instance.home.glob("backups/*-*")}
    assert len(before - after) == 1 and not after - before
    assert instance.call("GET", f"/pgherd/v1/service/{name}/backup").status_code == 404


@pytest.mark.timeout(400)
def test_a_lost_repository(instance: Instance) -> None:
    """It is made anew, the loss is told and shown, and a backup follows by itself."""
    name = instance.create()
    instance.run("backup", "create", name)
    instance.stored(name).clear()
    for pid in instance.processes("pgherd agent"):
        os.kill(pid, signal.SIGKILL)  # the next one looks at once

    def told() -> list[str]:
        events = instance.call("GET", "/pgherd/v1/event?limit=100").json()["events"]
        return [e["result"] for e in events if (e["command"], e["subject"]) == ("backup", name)]

    def again() -> bool:
        found = listed(instance, name)
        return len(found["backups"]) == 1 and "problem" not in found and "running" not in found

    until(lambda: any("vanished" in result or "was lost" in result for result in told()), 60, "the loss is told")
    until(lambda: "1 backup and" in listed(instance, name).get("problem", "") or again(), 90, "the loss is shown")
    until(again, 120, "a backup follows")
    until(lambda: any("work again" in result for result in told()), 30, "its end is told")
    instance.delete(name)


def test_the_schedule(instance: Instance, untouched: str) -> None:
    """The first backup comes by itself, and then one at the time of the day that is wished for."""
    [first] = until(lambda: listed(instance, untouched)["backups"], 90, "the first backup follows by itself")
    assert first["type"] == "full"
    doctor = json.loads(instance.run("doctor", "-o", "json", check=False).stdout)
    assert [one["level"] for one in doctor if one["what"] == "backups"] == ["ok"]
    assert reason(instance, untouched) == ""

    def since() -> datetime:
        """The minute that is running, when the first backup was over before it."""
        return datetime.now(UTC).replace(second=0, microsecond=0)

    until(lambda: datetime.fromisoformat(first["time"]) < since(), 70, "the next minute has begun")
    schedule = {"backup-hour": since().hour, "backup-minute": since().minute}
    changed = instance.client().update_dbaas_service_pg(name=untouched, backup_schedule=schedule)
    assert instance.finished(changed)["state"] == "success"
    until(lambda: listed(instance, untouched)["backups"][-1]["name"] != first["name"], 60, "the daily one follows")


def reason(instance: Instance, name: str) -> str:
    [node] = instance.client().get_dbaas_service_pg(name=name)["node-states"]
    return str(node.get("reason", ""))


def events(instance: Instance, name: str) -> list[str]:
    """What was told of the service's repository, the newest first."""
    found = json.loads(instance.run("events", "-o", "json").stdout)
    return [one["result"] for one in found if one["command"] == "backup" and one["subject"] == name]


def test_backups_in_s3(bucket: Bucket) -> None:
    """From the settings to the bucket and back; what goes wrong there is told, and over again."""
    with running_instance(**bucket.settings("zone"), archive_timeout_seconds="5") as instance:
        name, others = instance.create(), bucket.objects()
        assert "full" in instance.run("backup", "create", name).stdout
        assert listed(instance, name)["repository"] == "s3"
        before = bucket.objects() - others
        assert before > 4 and not list(instance.home.glob("backups/*-*/repo"))
        bucket.front.fault = 403
        instance.sql(name, "create table t (i int)")
        until(lambda: "WAL segments wait" in reason(instance, name), 60, "the node says that segments wait")
        until(lambda: any("WAL segments wait" in one for one in events(instance, name)), 30, "an event says so too")
        assert "WAL segments wait" in instance.run("doctor", check=False).stdout
        failed = instance.run("backup", "create", name, check=False)
        assert (failed.returncode, "403" in failed.stderr) == (1, True), failed.stderr
        bucket.front.fault = None
        assert "ok" in instance.run("backup", "create", name).stdout
        until(lambda: not reason(instance, name), 60, "all is well again")
        until(lambda: "work again" in events(instance, name)[0], 30, "an event says so too")
        # The metadata's repository is in the bucket too, and comes back from there.
        instance.run("platform", "backup")
        state = json.loads(instance.run("platform", "status", "-o", "json").stdout)
        assert state["ready"] and len(state["backups"]) in (1, 2)  # the agent's first one may have come before it
        assert not [path for path in (instance.home / "backups/platform").rglob("*") if path.is_file()]
        instance.run("platform", "restore", "--yes")
        instance.up()
        assert instance.sql(name, "select count(*) from t") == [(0,)]
        together = bucket.objects()
        instance.delete(name)
        assert bucket.objects() < together - before // 2  # the metadata's archive grows meanwhile
        logs = subprocess.run(["grep", "-r", "-l", bucket.secret, str(instance.home / "log")], capture_output=True)
        assert logs.stdout == b""
