"""A tenant that runs code as its service's OS user plants what may lead root astray: root does not follow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd import unprivileged
from pgherd.drivers import os_users
from pgherd.spec import NodeSpec
from tests.plugins.host import RunningHost, rooted, until

pytestmark = rooted

_FAKE = """
import os, socket, struct, sys
path, kind = sys.argv[1:]
os.unlink(path)
server = socket.socket(socket.AF_UNIX); server.bind(path); server.listen(50)
message = lambda kind, body: kind + struct.pack("!i", len(body) + 4) + body
while True:
    client, _ = server.accept()
    if os.fork():
        client.close(); continue
    if kind == "hang":
        while client.recv(65536): pass
    elif kind == "garbage":
        client.sendall(os.urandom(4000))
    else:
        client.recv(65536)
        client.sendall(message(b"R", struct.pack("!i", 0)) + message(b"Z", b"I"))
        client.recv(65536)
        client.sendall(message(b"T", struct.pack("!h", 1) + b"a\\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)))
        row = message(b"D", struct.pack("!hi", 1, 1 << 20) + b"x" * (1 << 20))
        try:
            while True: client.sendall(row)
        except OSError: pass
    os._exit(0)
"""


@pytest.fixture
def victim() -> Iterator[Path]:
    """A directory of somebody else's that everybody could write, with a file that must survive."""
    directory = Path(tempfile.mkdtemp(prefix="pgherd-victim-", dir="/var/tmp"))
    directory.chmod(0o777)
    (directory / "keep").write_text("mine")
    (directory / "keep").chmod(0o666)
    yield directory
    subprocess.run(["rm", "-rf", str(directory)], check=True)


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process of root's that must survive."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


def _tenant(host: RunningHost, spec: NodeSpec, script: str, *arguments: object) -> None:
    """What the tenant's code does as the service's user, in data/pgdata."""
    here = host.directory(spec) / "data" / "pgdata"
    argv = ["/bin/sh", "-ec", f'cd "$0"; {script}', str(here), *map(str, arguments)]
    answer = unprivileged.run(host.account(spec), argv)
    assert answer.code == 0, answer.err


def _deleted(host: RunningHost, spec: NodeSpec) -> None:
    account = host.account(spec)
    host.until_in_force(host.change(spec, desired="absent"), 60)
    assert not host.directory(spec).exists()
    assert os_users.find(account.name) is None
    assert os_users.processes_of(account.uid) == []


def test_the_service_can_write_nothing_but_its_data_and_socket(host: RunningHost) -> None:
    spec = host.running()
    places = [host.home, host.directory(spec), host.directory(spec) / "config", host.home / "s6", host.home / "agent"]
    for place in places:
        apart = ["-not", "-type", "l", "-not", "-path", "*/data*", "-not", "-path", "*/run*"]
        answer = unprivileged.run(host.account(spec), ["find", str(place), "-writable", *apart])
        assert answer.out == b"", answer.out
    for secret in ("config/server.key", "config/pg_hba.conf", "config/postgresql.conf"):
        assert (host.directory(spec) / secret).stat().st_mode & 0o007 == 0
    other = host.running()
    for place in (host.directory(other) / "data", host.directory(other) / "run", host.directory(other) / "config"):
        assert "Permission denied" in unprivileged.run(host.account(spec), ["head", str(place / "x")]).err
    _deleted(host, other)
    _deleted(host, spec)


def test_planted_symlinks_lead_nowhere(host: RunningHost, victim: Path) -> None:
    spec = host.running()
    _tenant(host, spec, 'ln -s "$1" base/away; ln -s "$1/keep" postgresql.auto.conf.tmp; ln -s "$1" ../away', victim)
    _tenant(host, spec, 'rm -rf ../../run/.s.*; ln -s "$1" ../../run/away; ln -s / ../../run/root', victim)
    _tenant(host, spec, 'cd ..; mv pgdata real; ln -s "$1" pgdata', victim)
    os.kill(host.postmaster(spec), signal.SIGKILL)
    host.change(spec, settings={"deadlock_timeout": 2000})
    until(lambda: host.link.statuses[spec.node_id].state != "running", 40)
    _deleted(host, spec)
    assert sorted(os.listdir(victim)) == ["keep"] and (victim / "keep").read_text() == "mine"


def test_a_forged_pid_file_signals_nobody(host: RunningHost, innocent: subprocess.Popen[bytes]) -> None:
    spec = host.running()
    _tenant(host, spec, 'printf "%s\\n%s\\n1\\n1\\n/\\n*\\n0 0\\nready\\n" "$1" "$0" >postmaster.pid', innocent.pid)
    spec = host.change(spec, restart=1)
    host.until(spec, lambda s: s.restart == 1 or s.state == "failed", 60)
    assert innocent.poll() is None
    _deleted(host, spec)


@pytest.mark.parametrize("kind", ["garbage", "hang", "flood"])
def test_a_fake_server_on_the_socket_is_reported_and_deleted(host: RunningHost, kind: str) -> None:
    spec = host.running()
    socket = host.directory(spec) / "run" / f".s.PGSQL.{spec.port}"
    account = host.account(spec)
    argv = [*unprivileged.prefix(account.uid, account.gid), "/usr/bin/python3", "-c", _FAKE, str(socket), kind]
    fake = subprocess.Popen(argv, start_new_session=True, stdout=sys.stderr)
    try:
        status = host.until(spec, lambda s: s.state == "failed", 40)
        assert status.reason
        _deleted(host, spec)
    finally:
        fake.kill()
        fake.wait()


def test_delete_ends_and_removes_what_hides(host: RunningHost) -> None:
    spec = host.running()
    account = host.account(spec)
    hidden = f"pgherd-hidden-{account.uid}"
    _tenant(host, spec, "mkdir -p ../deep/er; echo x >../deep/er/f; chmod 000 ../deep/er ../deep")
    _tenant(host, spec, f"touch /dev/shm/{hidden} /tmp/{hidden}; mkdir -p /var/tmp/{hidden}/d")
    _tenant(host, spec, "ipcmk -M 4096 >/dev/null")
    loop = 'trap "" TERM INT HUP; while :; do setsid sh -c "trap \'\' TERM; sleep 5" & sleep 0.05; done'
    argv = [*unprivileged.prefix(account.uid, account.gid), "setsid", "--fork", "sh", "-c", loop]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    _deleted(host, spec)
    assert not [p for p in ("/dev/shm", "/tmp", "/var/tmp") if (Path(p) / hidden).exists()]
    assert f" {account.uid} " not in Path("/proc/sysvipc/shm").read_text()


def test_hostile_names_and_log_lines_stay_text(host: RunningHost) -> None:
    spec = host.running()
    with host.connect(spec) as connection:
        connection.execute("""CREATE DATABASE "x'; DROP TABLE y; --\n\\! id" """)
        connection.execute("""CREATE ROLE "a""b\n\\q" LOGIN""")
    status = host.until(spec, lambda s: len(s.databases) == 2)
    assert "x'; DROP TABLE y; --\n\\! id" in status.databases
    assert 'a"b\n\\q' in [user.name for user in status.users]
    _deleted(host, spec)
