"""Row 69 of the attacks: a tenant runs code inside its PostgreSQL process; what it finds there is its own alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgherd.drivers import os_users, postgres
from pgherd.drivers.firewall import Firewall
from pgherd.drivers.limits import Limits
from pgherd.drivers.postgres import Cluster
from tests.plugins.instance import ROOTED, Instance, running_instance, until

pytestmark = pytest.mark.skipif(not ROOTED, reason="needs root: the walls are OS users, nftables and control groups")

_BOUNDS = ("cgroup.procs", "memory.limit_in_bytes", "memory.max", "pids.max", "cpu.shares", "cpu.weight")
_INTRUDER = """
import ctypes, json, os, socket, subprocess, sys
wanted, got = json.loads(sys.argv[1]), []
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, what):
    try:
        got.append([name, repr(what())[:80]])
    except OSError as error:
        if error.errno not in (1, 3, 13, 30, 111): got.append([name, repr(error)])

def must(answer):
    if answer == -1: raise OSError(ctypes.get_errno(), "")
    return answer

def call(address):
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as caller:
        caller.settimeout(2)
        caller.connect(address if isinstance(address, str) else tuple(address))

def write(path):
    with open(path, "ab", 0) as file: file.write(b"0\\n")

for path in wanted["read"]: attempt("read " + path, lambda: open(path, "rb").read(1))
for path in wanted["list"]: attempt("list " + path, lambda: os.listdir(path))
for path in wanted["write"]: attempt("write " + path, lambda: write(path))
for address in wanted["call"]: attempt("call %s" % address, lambda: call(address))
for pid in wanted["processes"]:
    attempt("environ %s" % pid, lambda: open("/proc/%s/environ" % pid, "rb").read(1))
    attempt("memory %s" % pid, lambda: open("/proc/%s/mem" % pid, "rb").read(1))
    attempt("fds %s" % pid, lambda: os.listdir("/proc/%s/fd" % pid))
    attempt("signal %s" % pid, lambda: os.kill(int(pid), 0))
    attempt("ptrace %s" % pid, lambda: must(libc.ptrace(0x4206, int(pid), 0, 0)))
attempt("setuid", lambda: os.setuid(0))
attempt("setgid", lambda: os.setgid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("mount", lambda: must(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)))
attempt("chroot", lambda: os.chroot("/tmp"))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
run = lambda *argv: subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
if run("/usr/sbin/nft", "flush", "ruleset").returncode == 0: got.append(["nft", ""])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "got": got, "euid of a setuid program": int(run(wanted["setuid"], "-u").stdout),
    "no new privileges": status["NoNewPrivs"].strip(), "capabilities": int(status["CapEff"], 16),
    "groups": status["Groups"].split(), "uid": os.getuid(),
}))
"""


@pytest.fixture(scope="module")
def walled() -> Iterator[Instance]:
    """An instance of this module alone, for it is taken down at the end."""
    with running_instance() as made:
        yield made


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can read, with a copy of `id` that is setuid root."""
    directory = Path(tempfile.mkdtemp(prefix="pgherd-intruder-", dir="/var/tmp"))
    directory.chmod(0o755)
    (directory / "attack.py").write_text(_INTRUDER)
    shutil.copy("/usr/bin/id", directory / "id")
    (directory / "id").chmod(0o4755)
    yield directory
    shutil.rmtree(directory)


def test_from_inside_a_postgres_process_nothing_of_anybody_else_can_be_reached(walled: Instance, place: Path) -> None:
    own, other = _node(walled, walled.create()), _node(walled, walled.create())
    home = walled.home
    mine = own["directory"] / "data/pgdata/PG_VERSION"
    services = {name: home / "s6" / name for name in ("api", "worker", "agent", "metadata", f"node-{other['id']}")}
    secret = [
        home / "credentials.toml", home / "secrets/keys.toml", home / "settings.env", home / "agent/key",
        home / f"agent/specs/{own['id']}.json", other["directory"] / "config/server.key",
        other["directory"] / "config/pg_hba.conf", other["directory"] / "data/pgdata/PG_VERSION",
        home / "metadata/data/PG_VERSION", home / "log/api/current", home / f"log/node-{own['id']}/current",
        *(directory / "run" for directory in services.values()), Path("/etc/shadow"),
    ]  # fmt: skip
    closed = [home / "secrets", home / "agent", home / "agent/specs", home / "metadata/run", other["directory"] / "run",
              other["directory"] / "data", other["directory"] / "config", home / "log/api", "/root"]  # fmt: skip
    groups = Limits(home).groups(own["id"])
    files = [
        own["directory"] / "config/pg_hba.conf", own["directory"] / "slot.json", home / "pgherd.toml",
        home / "current/bin/pgherd", home / f"s6/node-{own['id']}/run", "/proc/sys/kernel/core_pattern",
        *(directory / "supervise/control" for directory in services.values()), "/etc/passwd", "/var/run/docker.sock",
        *(group / name for group in groups for name in _BOUNDS
          if (group / name).exists()),
        *(group.parents[1] / "cgroup.procs" for group in groups),
    ]  # fmt: skip
    assert [path for path in secret if not path.exists()] == []
    sockets = [
        str(path) for path in (*(home / "metadata/run").glob(".s.*"), *(other["directory"] / "run").glob(".s.*"))
    ]
    wanted = {
        "read": [str(path) for path in (mine, *secret)],
        "list": [str(path) for path in closed],
        "write": [str(path) for path in files if Path(path).exists()],
        "call": [path for path in sockets if not path.endswith(".lock")]
        + [["127.0.0.1", walled.port], *(["127.0.0.1", other["port"] + offset] for offset in range(4))],
        "processes": [1, _main(home, "api"), _main(home, "agent"), _main(home, "metadata"), other["pid"]],
        "setuid": str(place / "id"),
    }
    assert len(wanted["call"]) == 7
    told = _inside(own, place, wanted)
    uid = own["cluster"].account.uid
    assert told == {
        "got": [[f"read {mine}", "b'1'"]], "uid": uid, "euid of a setuid program": uid, "groups": [],
        "no new privileges": "1", "capabilities": 0,
    }  # fmt: skip


def test_the_doctor_sees_the_walls_and_down_leaves_none(walled: Instance) -> None:
    name = walled.create()
    node = _node(walled, name)
    wall, limits = Firewall(walled.home), Limits(walled.home)
    assert set(range(node["port"], node["port"] + 4)) <= wall.ports()
    seen = {f["what"]: f for f in json.loads(walled.run("doctor", "-o", "json", check=False).stdout)}
    assert seen["firewall"]["level"] == "ok" and seen["limits"]["level"] == "ok", (seen["firewall"], seen["limits"])
    subprocess.run(["nft", "delete", "table", "inet", wall.table], check=True)
    groups = limits.groups(node["id"])
    assert groups and all(group.exists() for group in groups)
    walled.delete(name)
    assert not set(range(node["port"], node["port"] + 4)) & wall.ports()
    assert not [group for group in groups if group.exists()]
    other = walled.create()
    walled.run("down")
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert wall.table not in listed
    assert not [group for group in groups if group.parent.exists()]
    walled.up()
    until(wall.ports, 20, "the walls are there again")
    walled.delete(other)


def _node(instance: Instance, name: str) -> dict[str, Any]:
    spec = instance.spec(name)
    directory = instance.home / "nodes" / spec["node_id"]
    account = os_users.find(json.loads((directory / "slot.json").read_text())["user"])
    program = postgres.programs("")[spec["version"]]
    return {
        "id": spec["node_id"], "port": spec["port"], "directory": directory,
        "cluster": Cluster(program, directory, account, spec["port"]),
        "pid": _main(instance.home, f"node-{spec['node_id']}"),
    }  # fmt: skip


def _main(home: Path, service: str) -> int:
    pid = int((home / "s6" / service / "holder").read_text())
    os.kill(pid, 0)
    return pid


def _inside(node: dict[str, Any], place: Path, wanted: dict[str, Any]) -> Any:
    """Run the intruder as a child of the service's own postmaster."""
    command = f"/usr/bin/python3 {place}/attack.py '{json.dumps(wanted)}' 2>&1"
    said = postgres.psql(node["cluster"], f"""
        SET statement_timeout = '20s';
        CREATE TEMP TABLE said (line text);
        COPY said FROM PROGRAM $pgherd${command}$pgherd$ WITH (FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02');
        SELECT line FROM said;
    """, timeout=25)  # fmt: skip
    return json.loads(said)
