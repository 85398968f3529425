"""No service fills its disk, or the host's: it becomes read-only by default, and writable again when there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from pgherd import unprivileged
from pgherd.agent import agent as agent_module
from pgherd.api.notifications import notifications
from pgherd.drivers import disk
from pgherd.model.plan import PLANS
from pgherd.spec import NodeSpec, NodeStatus
from pgherd.telemetry import MEASURES
from tests.plugins.host import RunningHost, rooted, until

MIB = 1 << 20
pytestmark = pytest.mark.timeout(180)


def fill(connection: psycopg.Connection[Any], table: str, megabytes: int) -> None:
    """A table of about this size in one transaction."""
    connection.execute(
        f"create table if not exists {table} (t text);"
        f"alter table {table} alter t set storage external;"
        f"insert into {table} select repeat(md5(i::text), 250) from generate_series(1, {megabytes * 125}) i"
    )


def fill_until_refused(connection: psycopg.Connection[Any], seconds: float = 60, pause: float = 0) -> str:
    """Write in small transactions until the server refuses; what it says then. `pause`: seconds between two."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            fill(connection, "heap", 4)
            time.sleep(pause)
        except psycopg.Error as error:
            return str(error)
    raise AssertionError(f"nothing was refused within {seconds} s")


def is_loaded(host: RunningHost, node: NodeSpec) -> str:
    return host.until(node, lambda s: s.read_only != "", 30).read_only


def test_at_the_plan_s_limit(host: RunningHost) -> None:
    """Read-only for sessions that run already; the way out; writable again by itself; the agent's death in between."""
    node = host.running()
    node = host.change(node, disk_bytes=600 * MIB)
    host.until_in_force(node)
    with host.connect(node) as early, host.connect(node) as deleting:
        early.execute("select 1")
        assert "read-only transaction" in fill_until_refused(early, pause=0.05)
        assert is_loaded(host, node) == "plan"
        status = host.until(node, lambda s: s.disk_used > 0.9 * node.disk_bytes)
        assert status.disk_used < 1.2 * node.disk_bytes
        assert early.execute("select count(*) > 0 from heap").fetchone() == (True,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            deleting.execute("delete from heap")

        host.stop()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            early.execute("create table no (i int)")
        host.start()
        host.until(node, lambda s: s.read_only == "plan")

        # The platform still works in it.
        assert host.sql(node, "create role platform_works; drop role platform_works; select 1").strip() == "1"
        with deleting.transaction():
            deleting.execute("set transaction read write")
            deleting.execute("delete from heap where false")
        deleting.execute("set default_transaction_read_only = off")
        deleting.execute("truncate heap")
        host.sql(node, "checkpoint")
        host.until(node, lambda s: s.read_only == "", 60)
        early.execute("create table yes (i int)")


def test_a_transaction_that_goes_on_writing_is_ended(host: RunningHost) -> None:
    node = host.running(disk_bytes=600 * MIB)
    with host.connect(node) as connection, pytest.raises(psycopg.OperationalError):
        fill(connection, "heap", 4000)
    host.until(node, lambda s: s.read_only == "plan")
    assert host.used(node) < 3 * node.disk_bytes
    with host.connect(node) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_sort_that_fills_the_disk_is_ended(host: RunningHost) -> None:
    node = host.running(disk_bytes=600 * MIB)
    with host.connect(node) as connection, pytest.raises(psycopg.OperationalError):
        connection.execute("select * from generate_series(1, 200000000) i order by md5(i::text)")
    # Its temporary files are gone with it.
    host.until(node, lambda s: s.read_only == "", 60)


def test_what_the_platform_keeps_there_does_not_count(host: RunningHost) -> None:
    """Neither a proof, nor what is made for a restore, nor what was there before one."""
    node = host.running()
    node = host.change(node, disk_bytes=600 * MIB)
    host.until_in_force(node)
    until(lambda: host.used(node))
    before, data = time.monotonic(), host.directory(node) / "data"
    places = "proof making made-x returning before-x"
    script = f'cd "$1"; for d in {places}; do mkdir $d; fallocate -l {150 * MIB} $d/f; done'
    assert unprivileged.run(host.account(node), ["/bin/sh", "-c", script, "sh", str(data)]).code == 0
    try:
        until(lambda: host.agent.watch.meters[node.node_id].at > before)
        assert host.used(node) < 300 * MIB
        with host.connect(node) as connection:
            connection.execute("create table writable (i int)")
        assert unprivileged.run(host.account(node), ["fallocate", "-l", str(600 * MIB), f"{data}/pgdata/f"]).code == 0
        assert is_loaded(host, node) == "plan"
    finally:
        host.change(node, desired="absent")
        host.until(node, lambda s: s.state == "absent")


@contextlib.contextmanager
def file_system(size: int) -> Iterator[Path]:
    """A directory on an ext4 file system of its own."""
    with tempfile.TemporaryDirectory(prefix="pgherd-disk-", dir="/var/tmp") as above:
        image, place = Path(above, "image"), Path(above, "home")
        image.touch()
        os.truncate(image, size)
        place.mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-m", "1", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        Path(above).chmod(0o755)
        place.chmod(0o755)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def host_on(home: Path, reserve: int) -> Iterator[RunningHost]:
    usual, agent_module._LOOK_EVERY = agent_module._LOOK_EVERY, 1.0
    host = RunningHost(home, host_disk_reserve_percent=reserve)
    try:
        yield host
    finally:
        host.close()
        agent_module._LOOK_EVERY = usual


@rooted
def test_what_the_platform_keeps_in_a_file_system_of_the_service_s_own() -> None:
    """It takes room there, but is not the service's."""
    with file_system(300 * MIB) as data:
        (data / "proof").mkdir()
        for place, size in (("proof/f", 90), ("f", 20)):
            (data / place).write_bytes(b"1" * (size * MIB))
        found = disk.usage(data, [], None)
        assert 90 <= found.beside / MIB < 91 and 20 <= found.used / MIB < 60
        assert disk.usage(data, [], None, found) is found
        (data / "proof/f").unlink()
        os.sync()
        again = disk.usage(data, [], None, found)
        assert again.beside < MIB and abs(again.used - found.used) < 2 * MIB


@rooted
def test_a_host_that_runs_short_stops_only_the_one_that_grows() -> None:
    """The host's reserve is small here, and the disk fast: at most 200 MiB a second leave time to switch."""
    with file_system(1200 * MIB) as home, host_on(home, 40) as host:
        steady, growing = host.running(disk_bytes=80 << 30), host.running(disk_bytes=80 << 30)
        ended = threading.Event()
        written: list[int] = []

        def write_steadily() -> None:
            with host.connect(steady) as connection:
                connection.execute("create table t (i int)")
                while not ended.wait(0.05):
                    connection.execute("insert into t values (1)")
                    written.append(1)

        thread = threading.Thread(target=write_steadily)
        thread.start()
        try:
            with host.connect(growing) as connection:
                said = fill_until_refused(connection, pause=0.04)
            assert "read-only" in said or "terminating connection" in said
            assert host.until(growing, lambda s: s.read_only != "").read_only == "host"
            before = len(written)
            until(lambda: len(written) > before + 20, 20)
        finally:
            ended.set()
            thread.join(20)
        assert host.link.statuses[steady.node_id].read_only == ""
        assert os.statvfs(home).f_bavail * os.statvfs(home).f_frsize > 60 * MIB
        with host.connect(growing) as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute("drop table heap")
        host.sql(growing, "checkpoint")
        host.until(growing, lambda s: s.read_only == "", 60)


@rooted
def test_a_file_system_of_its_own_that_is_smaller_than_the_plan(host: RunningHost) -> None:
    """Every percent is of it: what is refused, the notice, the metrics."""
    plan = PLANS["hobbyist-2"]
    node = host.running(disk_bytes=plan.disk_bytes)
    node = host.change(node, desired="stopped")
    host.until_in_force(node)
    data = host.directory(node) / "data"
    with file_system(700 * MIB) as own:
        subprocess.run(["cp", "-a", f"{data}/.", str(own)], check=True)
        os.chown(own, data.stat().st_uid, data.stat().st_gid)
        own.chmod(0o700)
        subprocess.run(["mount", "--bind", str(own), str(data)], check=True)
        try:
            node = host.change(node, desired="running")
            host.until_in_force(node)
            status = host.until(node, lambda s: s.disk_capacity > 0)
            size = status.disk_capacity
            assert 500 * MIB < size < 700 * MIB and status.disk_used < size
            occupy(own, status, 92)
            status = host.until(node, lambda s: s.disk_used >= 0.91 * size, 90)
            assert note_of(status)["metadata"]["kind"] == "disk-nearly-full"
            occupy(own, status, 98)
            status = host.until(node, lambda s: s.read_only == "plan" and s.disk_used >= 0.97 * size, 90)
            said = note_of(status)
            assert (said["metadata"]["kind"], said["metadata"]["disk-size"]) == ("disk-full", size)
            assert "0.6 of the 0.6 GiB of the service's own file system are used." in said["message"]
            place = MEASURES.index("disk_usage")
            until(lambda: any((sample.measured[place] or 0) > 90 for sample in host.link.sampled), 90)
            node = host.change(node, desired="stopped")
            host.until_in_force(node)
        finally:
            subprocess.run(["umount", "-l", str(data)], check=True)


def occupy(place: Path, status: NodeStatus, percent: int) -> None:
    """One file more, which costs no time to write, up to this share of a file system of the service's own."""
    size = status.disk_capacity * percent // 100 - status.disk_used
    subprocess.run(["fallocate", "-l", str(size), str(place / f"ballast-{percent}")], check=True)


def note_of(status: NodeStatus) -> dict[str, Any]:
    """The one notification of a service of the smallest plan that is in this state."""
    nodes = [{"status": msgspec.to_builtins(status)}]
    row = {"stopped_at": None, "phase": "running", "nodes": nodes, "verification": None}
    (note,) = notifications(row, PLANS["hobbyist-2"])
    return note


@rooted
def test_a_file_system_that_is_really_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any guard, to the last byte: PostgreSQL is back by itself once there is room."""
    monkeypatch.setattr(agent_module, "_RETRY_BROKEN", 3.0)
    with file_system(500 * MIB) as home, host_on(home, 0) as host:
        own = disk.usage(home, [], None)  # as a service's directory, it would be a limit of its own
        assert 400 * MIB < own.capacity < 500 * MIB and own.used < 50 * MIB
        node = host.running(disk_bytes=80 << 30)
        with host.connect(node) as connection:
            connection.execute("create table kept as select 7 as i")
        ballast = home / "ballast"
        with open(ballast, "wb") as file:
            file.write(b"\0" * (100 * MIB))
        with contextlib.suppress(psycopg.Error), host.connect(node) as connection:
            fill_until_refused(connection)
        # What is left goes to root, so that not even a segment of WAL can be made.
        with contextlib.suppress(OSError), open(home / "rest", "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * MIB)
        with contextlib.suppress(psycopg.Error), host.connect(node) as connection:
            for _ in range(200):
                fill(connection, "heap", 1)
        os.kill(host.postmaster(node), 9)
        host.until(node, lambda s: s.state != "running" and s.reason.startswith("No space is left"), 60)
        assert not answers(host, node)
        node = host.change(node, ip_filter=["192.0.2.1/32"])  # the agent, too, has no room to write
        (home / "rest").unlink()
        ballast.unlink()
        host.until(node, lambda s: s.state == "running", 90)
        until(lambda: answers(host, node), 30)
        host.until_in_force(node)


def answers(host: RunningHost, node: NodeSpec) -> bool:
    with contextlib.suppress(psycopg.OperationalError), host.connect(node) as connection:
        return connection.execute("select i from kept").fetchone() == (7,)
    return False
