"""A host without a control plane: the real agent over real s6 and PostgreSQL, fed from memory."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import itertools
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bcrypt
import msgspec
import psycopg
import pytest

from pgherd import sealing
from pgherd.agent import agent as agent_module
from pgherd.agent.agent import Agent
from pgherd.agent.link import Bell
from pgherd.drivers import os_users, postgres
from pgherd.drivers.postgres import Cluster
from pgherd.settings import Settings
from pgherd.spec import Admin, HostFacts, Memory, NodeSpec, NodeStatus, Tls, UnknownNode
from pgherd.telemetry import LogQuestion, LogUnit, Sample
from tests.plugins.instance import Instance, delete_beside

if TYPE_CHECKING:
    from tests.plugins.objects import Bucket

PASSWORD = "opens-sesame"
#: What nodes run when a test names nothing else; with another one the same tests show that it is as good.
MAJOR = os.environ.get("PGHERD_TEST_MAJOR", "15")
rooted = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: separate OS users")


class MemoryLink:
    """The control plane as the agent sees it, in memory; `away` makes it unreachable."""

    def __init__(self) -> None:
        self.wished: dict[str, NodeSpec] = {}
        self.statuses: dict[str, NodeStatus] = {}
        self.facts: HostFacts | None = None
        self.history: list[NodeStatus] = []
        self.recovery, self.unknown_nodes = sealing.new_host_key(), dict[str, UnknownNode]()
        self.sampled: list[Sample] = []
        self.asked: list[LogQuestion] = []
        self.answers: dict[str, list[LogUnit]] = {}
        self._bell, self._changed = Bell(), False

    def register(self, public_key: str, facts: HostFacts) -> None:
        self.facts = facts

    def specs(self) -> list[NodeSpec]:
        return list(self.wished.values())

    def report(self, status: NodeStatus) -> None:
        self.statuses[status.node_id] = status
        self.history.append(status)
        if status.state == "absent":
            self.wished.pop(status.node_id, None)

    def recovery_key(self) -> str:
        return sealing.public_key(self.recovery)

    def unknown(self, nodes: list[UnknownNode], present: list[str]) -> None:
        self.unknown_nodes = {node.spec.node_id: node for node in nodes}

    def samples(self, samples: list[Sample]) -> None:
        self.sampled += samples

    def questions(self) -> list[LogQuestion]:
        asked, self.asked = self.asked, []
        return asked

    def answer(self, question: LogQuestion, units: list[LogUnit]) -> None:
        self.answers[question.batch] = units

    def wait(self, timeout: float) -> bool:
        self._bell.wait(timeout)
        changed, self._changed = self._changed, False
        return changed

    def wake(self) -> None:
        self._bell.ring()

    def wish(self, spec: NodeSpec) -> None:
        self.wished[spec.node_id] = spec
        self._changed = True
        self.wake()


class RunningHost:
    """An agent in a thread, in a home of its own. `bucket`: where its repositories lie, see `plugins.objects`."""

    bucket: Bucket | None = None

    def __init__(self, home: Path, warm_pool: int = 0, **settings: Any) -> None:
        self.home = home
        uids = "210000-210999"
        self.settings = Settings(
            home=str(home), warm_pool=warm_pool, uid_range=uids, service_ports="30000-32767",
            listen=f"127.0.0.1:{_free_port()}", **settings,
        )  # fmt: skip
        self.link = MemoryLink()
        self.start()

    def start(self) -> None:
        self.agent = Agent(self.settings, self.link)
        self._thread = threading.Thread(target=self.agent.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.agent.stop()
        self._thread.join(60)

    def spec(self, **changes: Any) -> NodeSpec:
        """A small service that loopback clients may use."""
        public = sealing.public_key(self.agent.host.private_key)
        certificate, key = _certificate(self.home)
        spec = NodeSpec(
            node_id=secrets.token_hex(8), service_id="s", generation=1, node_name="a-1", desired="running",
            version=MAJOR, port=_free_port(), memory=Memory(16, 64, 16, 4), max_connections=25, settings={},
            ip_filter=[], loopback=True,
            admin=Admin("avnadmin", sealing.seal(public, verifier(PASSWORD))),
            tls=Tls(certificate, sealing.seal(public, key)), disk_bytes=8 << 30,
        )  # fmt: skip
        return msgspec.structs.replace(spec, **changes)

    def monitor(self, password: str = PASSWORD) -> str:
        """What a spec says of the password for Prometheus."""
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        return sealing.seal(sealing.public_key(self.agent.host.private_key), hashed)

    def change(self, spec: NodeSpec, **changes: Any) -> NodeSpec:
        """Wish for the next generation of a node."""
        spec = msgspec.structs.replace(spec, generation=spec.generation + 1, **changes)
        self.link.wish(spec)
        return spec

    def until(self, spec: NodeSpec, reached: Callable[[NodeStatus], bool], seconds: float = 30) -> NodeStatus:
        """Wait for a status of this node."""

        def wanted() -> NodeStatus | None:
            status = self.link.statuses.get(spec.node_id)
            return status if status is not None and reached(status) else None

        return until(wanted, seconds, lambda: f"last status: {self.link.statuses.get(spec.node_id)}")

    def until_in_force(self, spec: NodeSpec, seconds: float = 30) -> NodeStatus:
        """Wait until the agent says that this spec is in force."""
        return self.until(spec, lambda s: s.generation >= spec.generation and s.state == spec.desired, seconds)

    def running(self, **changes: Any) -> NodeSpec:
        """A node that runs."""
        spec = self.spec(**changes)
        self.link.wish(spec)
        self.until_in_force(spec)
        return spec

    def directory(self, spec: NodeSpec) -> Path:
        return self.home / "nodes" / spec.node_id

    def connect(self, spec: NodeSpec, **more: Any) -> psycopg.Connection[Any]:
        """As a tenant does, over TLS."""
        given = {"host": "127.0.0.1", "port": spec.port, "sslmode": "require", "connect_timeout": 5}
        given |= {"dbname": "defaultdb", "user": "avnadmin", "password": PASSWORD}
        return psycopg.connect(autocommit=True, **(given | more))

    def sql(self, spec: NodeSpec, script: str) -> str:
        """As the platform does, on the node's own socket."""
        program = self.agent.programs[spec.version]
        return postgres.psql(Cluster(program, self.directory(spec), self.account(spec), spec.port), script)

    def used(self, spec: NodeSpec) -> int:
        """Bytes that a node uses, as last measured; 0: not yet."""
        usage = self.agent.watch.usage(spec.node_id)
        return usage.used if usage else 0

    def account(self, spec: NodeSpec) -> Any:
        return self.agent.slots.account(self.directory(spec))

    def postmaster(self, spec: NodeSpec) -> int:
        return int((self.home / "s6" / f"node-{spec.node_id}" / "holder").read_text())

    def close(self) -> None:
        """Leave no process, user or directory behind."""
        with contextlib.suppress(Exception):
            self.stop()
        with contextlib.suppress(Exception):
            self.agent.supervisor.stop_scanner(wait=30)
        self.agent.host.firewall.remove()
        for parent in (self.home / "nodes", self.home / "warm"):
            for directory in parent.iterdir() if parent.exists() else ():
                with contextlib.suppress(Exception):
                    self.agent.slots.discard(directory)
        self.agent.host.limits.remove_all()
        delete_beside(self.home)


def until(reached: Callable[[], Any], seconds: float = 30, complaint: Callable[[], str] = lambda: "") -> Any:
    """Wait for a truthy answer."""
    deadline = time.monotonic() + seconds * Instance.patience
    while not (answer := reached()):
        assert time.monotonic() < deadline, f"not reached within {seconds} s; {complaint()}"
        time.sleep(0.01)
    return answer


def verifier(password: str) -> str:
    """The SCRAM-SHA-256 verifier of a password, as pg_authid stores it."""
    salt, rounds = os.urandom(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    client = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, client, server)]
    return f"SCRAM-SHA-256${rounds}:{text[0]}${text[1]}:{text[2]}"


_turn = itertools.count()
_BLOCK, _FIRST, _LAST = 224, 30000, 32764


@functools.cache
def _own_block() -> tuple[int, socket.socket]:
    """Ports that no other test process of this machine has, and what holds them: a socket."""
    blocks = range(_FIRST, _LAST - _BLOCK, _BLOCK)
    for first in random.sample(blocks, len(blocks)):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0pgherd-test-host-ports-{first}")
        except OSError:
            holder.close()
            continue
        return first, holder
    raise AssertionError("every block of ports for tests is taken")


def _free_port() -> int:
    """Ports in turn: those of nodes that were deleted come again only after all others."""
    first, _ = _own_block()
    for port in (first + next(_turn) % (_BLOCK // 4) * 4 for _ in range(_BLOCK // 4)):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        return port
    raise AssertionError("no free port")


def _certificate(home: Path) -> tuple[str, str]:
    certificate, key = home / "test.crt", home / "test.key"
    if not certificate.exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True,
        )  # fmt: skip
    return certificate.read_text(), key.read_text()


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A directory that services' users can reach."""
    home = Path(tempfile.mkdtemp(prefix="pgherd-real-", dir="/var/tmp"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def host() -> Iterator[RunningHost]:
    """One agent for the tests of a module, which use nodes of their own; it looks at them every second."""
    usual, agent_module._LOOK_EVERY = agent_module._LOOK_EVERY, 1.0
    home = Path(tempfile.mkdtemp(prefix="pgherd-real-", dir="/var/tmp"))
    home.chmod(0o755)
    _ensure_log_user()
    running = RunningHost(home)
    yield running
    running.close()
    agent_module._LOOK_EVERY = usual


def _ensure_log_user() -> None:
    if os.geteuid() == 0 and os_users.find("pgherd-log") is None:
        argv = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "pgherd-log"]
        subprocess.run(argv, check=True)
