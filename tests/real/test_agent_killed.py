"""The agent and the supervisors are killed; nodes run on, and every wish is carried out in the end."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from pgherd.drivers import os_users, pgbouncer, postgres
from pgherd.drivers.supervisor.processes import running
from pgherd.settings import Settings
from pgherd.spec import NodeSpec, NodeStatus, Pool, Task, TaskResult
from tests.plugins.host import RunningHost, until

_POOLER = pgbouncer.program(Settings().pgbouncer)
_RUNNING = ["place", "firewall", "limits", "configure", "data", "supervise", "start", "restart", "reload", "admin"]
_RUNNING += ["task", "features", "pools", "record"]
_PLACES = [f"running {step} {edge}" for step in _RUNNING for edge in ("begin", "end")]
_ABSENT = ["jobs", "exporter", "pools", "stop", "repository", "delete", "limits", "firewall", "record"]
_PLACES += [f"absent {step} {edge}" for step in _ABSENT for edge in ("begin", "end")]


class AgentProcess:
    """The agent of `host` as a process that may be killed; `host` only lends its home and makes specs."""

    def __init__(self, host: RunningHost) -> None:
        self.host, self.home = host, host.home
        self.points = self.home / "failpoints"
        for place in (self.points, self.home / "wish", self.home / "said"):
            place.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = os.environ | {"PGHERD_FAILPOINTS": str(self.points)}
        with open(self.home / "agent.log", "ab") as log:
            argv = [sys.executable, "-m", "tests.real.agent_process", str(self.home)]
            self._process = subprocess.Popen(argv, env=env, stderr=log, cwd=Path(__file__).parents[2])

    def died(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def ensure(self) -> None:
        if self._process is None or self.died():
            self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def wish(self, spec: NodeSpec) -> NodeSpec:
        aside = self.home / "wish" / ".new"
        aside.write_bytes(msgspec.json.encode(spec))
        aside.rename(self.home / "wish" / f"{spec.node_id}.json")
        return spec

    def said(self, spec: NodeSpec) -> NodeStatus | None:
        try:
            return msgspec.json.decode((self.home / "said" / f"{spec.node_id}.json").read_bytes(), type=NodeStatus)
        except FileNotFoundError:
            return None

    def until_in_force(self, spec: NodeSpec) -> NodeStatus:
        """Wait, starting the agent again whenever it died."""

        def reached() -> NodeStatus | None:
            self.ensure()
            status = self.said(spec)
            good = status is not None and status.generation == spec.generation and status.state == spec.desired
            return status if good else None

        return until(reached, 40, lambda: f"{self.said(spec)}\n{(self.home / 'agent.log').read_text()[-3000:]}")


@pytest.fixture(scope="module")
def process(host: RunningHost) -> Iterator[AgentProcess]:
    host.stop()
    process = AgentProcess(host)
    yield process
    process.stop()


def test_the_places_are_those_that_a_create_and_a_delete_pass(process: AgentProcess) -> None:
    spec = process.wish(process.host.spec())
    process.until_in_force(spec)
    process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=2, desired="absent")))
    passed = dict.fromkeys((process.points / "trace").read_text().splitlines())
    assert list(passed) == [f"agent {place}" for place in _PLACES]


# The end of one step is the same to a node as the begin of the next.
@pytest.mark.parametrize("place", [p for p in _PLACES if p.endswith("end") or p in (_PLACES[0], "absent pools begin")])
def test_killed_at_any_place_the_wish_comes_true(process: AgentProcess, place: str) -> None:
    (process.points / "arm").write_text(f"agent {place} kill\n")
    pools = [Pool("main", "made", "session", 2)] if _POOLER is not None and _POOLER.serves else []
    spec = process.wish(
        process.host.spec(task=Task("t", "create-database", "made"), pools=pools, monitor=process.host.monitor())
    )
    assert process.until_in_force(spec).task == TaskResult("t", "done")
    with process.host.connect(spec, dbname="main" if pools else "made", port=spec.port + len(pools)) as connection:
        connection.execute("CREATE TABLE public.t AS SELECT 1")
    account = process.host.account(spec)
    process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=2, desired="absent")))
    assert not (process.points / "arm").exists()
    assert not process.host.directory(spec).exists()
    names = process.host.agent.supervisor.names()
    assert f"node-{spec.node_id}" not in names and f"pool-{spec.node_id}" not in names
    assert account is None or os_users.find(account.name) is None


def test_every_step_may_be_run_twice(process: AgentProcess) -> None:
    (process.points / "twice").touch()
    spec = process.wish(process.host.spec())
    process.until_in_force(spec)
    process.host.connect(spec).close()
    process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=2, desired="absent")))
    (process.points / "twice").unlink()


def test_killed_while_it_makes_a_warm_directory_it_leaves_none(process: AgentProcess) -> None:
    home = process.home
    process.stop()
    for path in (home / "warm").iterdir():
        process.host.agent.slots.discard(path)
    until(lambda: process.ensure() or list((home / "warm").glob(".making-*")), 20)
    making = next((home / "warm").glob(".making-*"))
    assert process._process is not None
    process._process.kill()
    process._process.wait()
    process.start()
    until(lambda: not making.exists(), 20)
    assert os_users.find(f"pgherd-{making.name.removeprefix('.making-')}") is None
    until(lambda: [p for p in (home / "warm").iterdir() if not p.name.startswith(".")], 20)


@pytest.mark.parametrize("victims", [["s6-supervise"], ["s6-svscan"], ["s6-svscan", "s6-supervise", "s6-log"]])
def test_killed_supervisors_hurt_no_connection(process: AgentProcess, victims: list[str]) -> None:
    spec = process.wish(process.host.spec(node_id=secrets.token_hex(8)))
    process.until_in_force(spec)
    with process.host.connect(spec) as connection:
        pid = process.host.postmaster(spec)
        scan = process.home / "s6"
        for name in victims:
            for victim, cwd in list(running(name)):
                if cwd == scan or scan in cwd.parents or name == "s6-log":
                    _kill_if_ours(victim, process.home)
        until(lambda: process.host.agent.supervisor.scanner_alive(), 10)
        time.sleep(1.5)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert process.host.postmaster(spec) == pid
    # Adopted, it still restarts, comes back after a crash, and stops.
    os.kill(pid, signal.SIGKILL)
    until(lambda: _connects(process, spec), 10)
    process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=2, restart=1)))
    process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=3, desired="absent")))
    until(lambda: not [1 for _, cwd in running("postgres") if process.host.directory(spec) in cwd.parents], 5)


def test_an_adopted_node_restarts_cleanly(process: AgentProcess) -> None:
    spec = process.wish(process.host.spec())
    process.until_in_force(spec)
    for victim, cwd in list(running("s6-supervise")):
        if cwd == process.home / "s6" / f"node-{spec.node_id}":
            os.kill(victim, signal.SIGKILL)
    time.sleep(1.2)
    status = process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=2, restart=1)))
    assert status.restart == 1
    process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=3, desired="absent")))


def test_what_a_dead_adopted_postmaster_left_does_not_block_its_successor(process: AgentProcess) -> None:
    spec = process.wish(process.host.spec())
    process.until_in_force(spec)
    directory = process.host.directory(spec)
    program = process.host.agent.programs[spec.version]
    cluster = postgres.Cluster(program, directory, process.host.account(spec), spec.port)
    # It inherits the lock of the service directory and outlives its postmaster.
    postgres.psql(cluster, "COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; setsid sleep 300 >/dev/null 2>&1 &';")
    for victim, cwd in list(running("s6-supervise")):
        if cwd == process.home / "s6" / f"node-{spec.node_id}":
            os.kill(victim, signal.SIGKILL)
    time.sleep(1.2)
    os.kill(process.host.postmaster(spec), signal.SIGKILL)
    until(lambda: _connects(process, spec), 30)
    process.until_in_force(process.wish(msgspec.structs.replace(spec, generation=2, desired="absent")))


def _kill_if_ours(pid: int, home: Path) -> None:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    cwd = os.readlink(f"/proc/{pid}/cwd")
    if cwd.startswith(str(home)) or any(word.startswith(str(home)) for word in words):
        os.kill(pid, signal.SIGKILL)


def _connects(process: AgentProcess, spec: NodeSpec) -> bool:
    try:
        process.host.connect(spec).close()
    except psycopg.OperationalError:
        return False
    return True
