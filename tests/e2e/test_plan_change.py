"""Another plan: refused with numbers before anything moves, or in force in PostgreSQL, the control group and GET."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd.drivers import limits
from pgherd.model.plan import GIB, MIB, PLANS, memory
from pgherd.settings import Settings
from tests.contract.processes import metadata
from tests.plugins.instance import ROOTED, Instance, until

SMALL, LARGE = PLANS["hobbyist-2"], PLANS["startup-16"]


def change(instance: Instance, name: str, **fields: Any) -> None:
    done = instance.finished(instance.client().update_dbaas_service_pg(name=name, **fields))
    assert done["state"] == "success", done


def refusal(instance: Instance, name: str, plan: str) -> str:
    """Why a plan is refused; nothing about the service changes with it."""
    before = instance.client().get_dbaas_service_pg(name=name)
    answer = instance.call("PUT", f"/v2/dbaas-postgres/{name}", {"plan": plan})
    assert 400 <= answer.status_code < 500, answer.text
    after = instance.client().get_dbaas_service_pg(name=name)
    assert (after["plan"], after["updated-at"], after["state"]) == (before["plan"], before["updated-at"], "running")
    return str(answer.json()["message"])


def node_of(instance: Instance, name: str) -> str:
    return metadata(
        instance,
        "select n.id from node n join service s on s.id = n.service_id"
        f" where s.name = '{name}' and s.deleted_at is null",
    )


def assert_in_force(instance: Instance, name: str, plan: str) -> None:
    """Everything that follows from a plan."""
    wished = PLANS[plan]
    host = instance.call("GET", "/pgherd/v1/host").json()["hosts"][0]
    sizes = memory(wished, host["memory"], Settings().memory_cap_percent)
    disk = wished.disk_bytes // MIB
    expected = {
        "max_connections": wished.max_connections,
        "shared_buffers": sizes.shared_buffers * MIB // 8192,
        "effective_cache_size": sizes.effective_cache_size * MIB // 8192,
        "maintenance_work_mem": sizes.maintenance_work_mem * 1024,
        "work_mem": sizes.work_mem * 1024,
        "max_wal_size": min(4096, max(256, disk // 16)),
        "max_slot_wal_keep_size": max(1024, disk // 4),
    }
    names = ", ".join(f"'{parameter}'" for parameter in expected)
    shown = instance.sql(name, f"select name, setting::bigint from pg_settings where name in ({names})")
    assert dict(shown) == expected
    service = instance.client().get_dbaas_service_pg(name=name)
    assert (service["plan"], service["max-connections"], service["node-cpu-count"], service["node-memory"]) == (
        plan, wished.max_connections, wished.cpus, wished.memory_bytes,
    )  # fmt: skip
    assert service["disk-size"] == wished.disk_bytes
    if ROOTED:
        assert_walls(instance, name, plan)


def assert_walls(instance: Instance, name: str, plan: str) -> None:
    """The control groups hold the plan's bounds, and the server's processes are in them."""
    wished, node = PLANS[plan], node_of(instance, name)
    of_host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = limits.Limits(instance.home)
    found: dict[str, str] = {}
    for group in groups.groups(node):
        for file in ("memory.limit_in_bytes", "memory.max", "pids.max", "cpu.shares", "cpu.weight"):
            with contextlib.suppress(FileNotFoundError):
                found[file] = (group / file).read_text().strip()
    most = min(wished.memory_bytes * 9 // 8, of_host * 85 // 100)
    assert abs(int(found.get("memory.limit_in_bytes") or found["memory.max"]) - most) < 4096
    assert found["pids.max"] == str(2 * wished.max_connections + 256)
    assert found.get("cpu.shares", str(1024 * wished.cpus)) == str(1024 * wished.cpus)
    pid = int((instance.home / "nodes" / node / "data/pgdata/postmaster.pid").read_text().split()[0])
    assert groups.holds(node, pid)


@pytest.mark.timeout(240)
def test_up_and_down(instance: Instance) -> None:
    name = instance.create(plan=SMALL.name)
    created = instance.client().get_dbaas_service_pg(name=name)
    instance.sql(name, "create table kept as select 7 as i")
    assert_in_force(instance, name, SMALL.name)
    later = f"select now() > updated_at + interval '1 s' from service where name = '{name}' and deleted_at is null"
    until(lambda: metadata(instance, later) == "t", 5, "a second has passed")
    change(instance, name, plan=LARGE.name)
    assert_in_force(instance, name, LARGE.name)
    changed = instance.client().get_dbaas_service_pg(name=name)
    assert changed["created-at"] == created["created-at"]
    assert changed["updated-at"] > created["updated-at"]

    # What the smaller plan could not hold is refused: connections of pools, lock tables.
    assert [c["component"] for c in changed["components"]] == ["pg"]
    path = f"/v2/dbaas-postgres/{name}"
    pool = instance.call("POST", f"{path}/connection-pool", {"name": "p", "database-name": "defaultdb", "size": 100})
    assert instance.finished(pool.json())["state"] == "success"
    components = instance.client().get_dbaas_service_pg(name=name)["components"]
    assert [(c["component"], c["port"]) for c in components] == [
        ("pg", int(changed["uri-params"]["port"])),
        ("pgbouncer", int(changed["uri-params"]["port"]) + 1),
    ]
    message = refusal(instance, name, SMALL.name)
    assert message.startswith("plan: ") and "100" in message and "25" in message
    assert instance.finished(instance.call("DELETE", f"{path}/connection-pool/p").json())["state"] == "success"

    change(instance, name, plan=SMALL.name)
    assert_in_force(instance, name, SMALL.name)
    assert instance.sql(name, "select i from kept") == [(7,)]
    instance.delete(name)


@pytest.mark.timeout(180)
def test_refused_before_anything_moves(instance: Instance) -> None:
    name = instance.create(plan="startup-4")
    started = instance.sql(name, "select pg_postmaster_start_time()::text")
    assert "2 nodes, which is not available yet; allowed: hobbyist-2" in refusal(instance, name, "business-4")
    assert "must be one of hobbyist-2" in refusal(instance, name, "giant-1")

    # More than the host may be promised: the numbers say how much there is.
    others = [instance.create(plan="startup-225") for _ in range(3)]
    text = refusal(instance, name, "startup-225")
    assert "221 GiB more do not fit" in text and "host_overcommit_percent" in text
    for other in others:
        instance.delete(other)

    # 6.5 GiB are in use; a plan must hold 125 % of that, and hobbyist-2 has 8 GiB.
    ballast = instance.home / "nodes" / node_of(instance, name) / "data/pgdata/base/ballast"
    try:
        occupy(ballast, 13 * GIB // 2)
        used = f"select (status ->> 'disk_used')::bigint > {6 * GIB} from node where id = '{node_of(instance, name)}'"
        until(lambda: metadata(instance, used) == "t", 90, "what is used has been measured")
        text = refusal(instance, name, "hobbyist-2")
        assert text.startswith("plan: hobbyist-2 has 8 GiB of disk, but 6.") and "125 %" in text
    finally:
        ballast.unlink(missing_ok=True)
    assert instance.sql(name, "select pg_postmaster_start_time()::text") == started
    instance.delete(name)


def occupy(path: Path, size: int) -> None:
    """A file of this size of the service's own, which costs no time to write."""
    owner = path.parent.stat()
    subprocess.run(["fallocate", "-l", str(size), str(path)], check=True)
    os.chown(path, owner.st_uid, owner.st_gid)


@pytest.mark.timeout(180)
def test_a_full_disk_in_get(instance: Instance) -> None:
    """A notice at 90 %, a warning and read-only at 97 %, nothing once there is room; a larger plan is a way out."""
    name = instance.create(plan="hobbyist-2")
    client = instance.client()
    ballast = instance.home / "nodes" / node_of(instance, name) / "data/pgdata/base/ballast"

    def kinds() -> list[str]:
        notes = client.get_dbaas_service_pg(name=name)["notifications"]
        assert all(note["type"] == "service_end_of_life" for note in notes)
        return [note["metadata"]["kind"] for note in notes]

    assert kinds() == []
    try:
        occupy(ballast, int(7.4 * GIB))
        until(lambda: kinds() == ["disk-nearly-full"], 90, "a notice")
        assert instance.sql(name, "create table t (i int)") == []
        occupy(ballast, int(7.9 * GIB))
        until(lambda: kinds() == ["disk-full"], 60, "a warning")
        (note,) = client.get_dbaas_service_pg(name=name)["notifications"]
        assert note["level"] == "warning" and "SET default_transaction_read_only = off" in note["message"]
        assert json.dumps(note["metadata"]).count("disk-") == 3
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            instance.sql(name, "insert into t values (1)")
        change(instance, name, plan="startup-4")
        until(lambda: kinds() == [], 60, "the larger plan has room")
        instance.sql(name, "insert into t values (1)")
    finally:
        ballast.unlink(missing_ok=True)
    instance.delete(name)
