"""A whole pgherd instance in a temporary home: the real `pgherd up`, the installed release, free ports."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import requests
from exoscale.api.v2 import Client
from exoscale_auth import ExoscaleV2Auth

if TYPE_CHECKING:
    from tests.plugins.objects import Bucket, Stored

CHECKOUT = Path(__file__).parents[2]
ROOTED = os.geteuid() == 0


#: Where the session's one build of the release lies; every instance gets it by hard links.
BUILT = "PYTEST_PGHERD_BUILT"


def pytest_configure(config: pytest.Config) -> None:
    """Build the release once, in the process that starts the others, when whole instances may be started."""
    if hasattr(config, "workerinput") or config.option.collectonly or BUILT in os.environ:
        return
    if [arg for arg in config.args if not any(part in arg for part in ("unit", "real", "attacks"))]:
        os.environ[BUILT] = tempfile.mkdtemp(prefix="pgherd-built-")
        env = {name: value for name, value in os.environ.items() if not name.startswith("PGHERD_")}
        env["PGHERD_HOME"] = os.environ[BUILT]
        subprocess.run(["sh", "install/release.sh"], cwd=CHECKOUT, env=env, check=True, stdout=subprocess.DEVNULL)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the build."""
    if not hasattr(config, "workerinput") and BUILT in os.environ:
        shutil.rmtree(os.environ.pop(BUILT), ignore_errors=True)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_deletions: list[subprocess.Popen[bytes]] = []


def delete_beside(directory: Path) -> None:
    """Delete a directory of many files while other tests run; the session's end waits for it."""
    _deletions.append(subprocess.Popen(["rm", "-rf", str(directory)], stderr=subprocess.DEVNULL))


def pytest_sessionfinish() -> None:
    """Nothing is left."""
    for deletion in _deletions:
        deletion.wait(300)


def until(what: Callable[[], Any], seconds: float, reason: str, longest_pause: float = 0.1) -> Any:
    """The first true answer of `what`; fails with `reason` and the last answer when the time is over."""
    end, pause = time.monotonic() + seconds * Instance.patience, 0.02
    while True:
        answer = what()
        if answer:
            return answer
        if time.monotonic() > end:
            pytest.fail(f"after {seconds} s still not: {reason}; last: {answer!r}")
        time.sleep(pause)
        pause = min(pause * 1.3, longest_pause)  # the servers under test share the cores


_BLOCK = 240


def process_state(pid: int) -> str:
    """As ps has it, such as T: stopped, Z: ended and not waited for. Empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _port_block() -> tuple[str, socket.socket]:
    """A range of service ports that no other test process of this machine has, and what holds it: a socket."""
    for first in random.sample(range(10240, 21600 - _BLOCK, _BLOCK), 40):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0pgherd-test-ports-{first}")
        except OSError:
            holder.close()
            continue
        return f"{first}-{first + _BLOCK - 1}", holder
    raise RuntimeError("every block of ports for tests is taken")


class SignedAnew(ExoscaleV2Auth):  # type: ignore[misc]
    """Gives each request an end of its own: two like ones of one second would be one request (decision 0005)."""

    _number = itertools.count()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        self._sign_request(request, int(time.time()) + 100 + next(self._number) % 500)
        return request


class Instance:
    """One running instance and the ways to talk to it.

    `bucket`: where its repositories lie, see `plugins.objects`; `patience`: how much longer everything may take there.
    """

    bucket: Bucket | None = None
    patience = 1

    def __init__(self, failpoints: bool = False, **settings: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="pgherd-test-"))
        self.home.chmod(0o755)
        self.failpoints = self.home / "failpoints"
        self.port = free_port()
        ports, self._ports_holder = _port_block()
        self.on_response: Callable[..., None] | None = None
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("PGHERD_", "EXOSCALE_"))}
        self.env |= {
            "PGHERD_HOME": str(self.home),
            "PGHERD_LISTEN": f"127.0.0.1:{self.port}",
            "PGHERD_SERVICE_PORTS": ports,
            "PGHERD_PORT_REST_SECONDS": "1",
            "PGHERD_WARM_POOL": "1",
        }
        if self.bucket is not None and "backup_s3_bucket" not in settings:
            settings = self.bucket.settings(self.home.name) | settings
        self.prefix = settings.get("backup_s3_prefix", "")
        self.env |= {f"PGHERD_{name.upper()}": value for name, value in settings.items()}
        if failpoints:
            self.failpoints.mkdir()
            self.failpoints.chmod(0o777)
            self.env["PGHERD_FAILPOINTS"] = str(self.failpoints)
        if built := os.environ.get(BUILT):
            subprocess.run(["cp", "-al", f"{built}/releases", str(self.home)], check=True)
        made = subprocess.run(
            ["sh", "install/release.sh"], cwd=CHECKOUT, env=self.env, check=True, capture_output=True, text=True
        )
        self.program = Path(made.stdout.strip()) / "bin/pgherd"

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `pgherd ARGV` of the installed release."""
        done = subprocess.run(
            [str(self.program), *argv],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=180 * self.patience,
            check=False,
            **options,
        )
        if check and done.returncode:
            pytest.fail(f"pgherd {' '.join(argv)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def up(self) -> None:
        """Start, and learn endpoint and key from `pgherd env`."""
        self.run("up")
        lines = self.run("env").stdout.splitlines()
        pairs = (line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        self.exports = {name: value.strip("'\"") for name, value in pairs}
        self.endpoint = self.exports["EXOSCALE_API_ENDPOINT"]

    def client(self, key: tuple[str, str] | None = None) -> Client:
        """The official SDK's client; `on_response`, if there is one, looks at each of its answers."""
        client = Client(*(key or self.key), url=self.endpoint)
        if self.on_response:
            client.http_client.hooks["response"].append(self.on_response)
        return client

    @property
    def key(self) -> tuple[str, str]:
        """The operator's key and its secret."""
        return self.exports["EXOSCALE_API_KEY"], self.exports["EXOSCALE_API_SECRET"]

    def sign(self, request: requests.Request, key: tuple[str, str] | None = None) -> requests.PreparedRequest:
        """Sign once, as the Go clients do, so that the same request can be sent again; a like one is another."""
        request.auth = SignedAnew(*(key or self.key))
        return request.prepare()

    def send(self, request: requests.PreparedRequest) -> requests.Response:
        """Send a request as it is."""
        with requests.Session() as session:
            answer = session.send(request, timeout=30)
        if self.on_response:
            self.on_response(answer)
        return answer

    def call(self, method: str, path: str, body: Any = None, key: tuple[str, str] | None = None) -> requests.Response:
        """One signed request; `path` starts with /v2 or /pgherd."""
        url = self.endpoint.removesuffix("/v2") + path
        return self.send(self.sign(requests.Request(method, url, json=body), key))

    def finished(self, operation: dict[str, Any], seconds: float = 60, longest_pause: float = 0.1) -> dict[str, Any]:
        """Poll an operation until it ended."""
        client = self.client()

        def ended() -> dict[str, Any] | None:
            with contextlib.suppress(requests.ConnectionError):
                found: dict[str, Any] = client.get_operation(id=operation["id"])
                return found if found["state"] != "pending" else None
            return None

        return dict(until(ended, seconds, f"operation {operation} ended", longest_pause))

    def create(self, name: str | None = None, **fields: Any) -> str:
        """A running service; its name."""
        name = name or f"t-{uuid.uuid4().hex[:10]}"
        operation = self.client().create_dbaas_service_pg(name=name, **({"plan": "hobbyist-2"} | fields))
        done = self.finished(operation)
        assert done["state"] == "success", done
        return name

    def delete(self, name: str) -> None:
        """Delete a service and wait until it is gone."""
        done = self.finished(self.client().delete_dbaas_service(name=name))
        assert done["state"] == "success", done

    def dsn(self, name: str, **overrides: str) -> str:
        """A connection string with the revealed password and the CA from the API."""
        client = self.client()
        params = client.get_dbaas_service_pg(name=name)["uri-params"]
        secret = client.reveal_dbaas_postgres_user_password(service_name=name, username=params["user"])
        ca = self.home / "test-ca.pem"
        ca.write_text(client.get_dbaas_ca_certificate()["certificate"])
        parts = {
            **params,
            "password": secret["password"],
            "sslmode": "verify-full",
            "sslrootcert": str(ca),
            **overrides,
        }
        return psycopg.conninfo.make_conninfo(**parts, connect_timeout="5")

    def sql(self, name: str, statement: str, **overrides: str) -> list[tuple[Any, ...]]:
        """Run a statement as the admin over TLS; its rows."""
        with psycopg.connect(self.dsn(name, **overrides), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def platform_sql(self, name: str, statement: str) -> str:
        """Run a statement as the service's superuser, through its own socket."""
        from tests.contract.processes import metadata

        mine = f"service_id = (select id from service where name = '{name}' and deleted_at is null)"
        directory = self.home / "nodes" / metadata(self, f"select id from node where {mine}")
        owner = (directory / "data").stat()
        port = self.client().get_dbaas_service_pg(name=name)["uri-params"]["port"]
        argv = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", str(directory / "run"), "-p", port]
        who = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if ROOTED else {}
        done = subprocess.run(  # type: ignore[call-overload]
            [*argv, "-c", statement], capture_output=True, text=True, cwd="/", check=True, **who
        )
        return str(done.stdout.strip())

    def spec(self, name: str) -> dict[str, Any]:
        """What the agent keeps of the one node of a service."""
        port = int(self.client().get_dbaas_service_pg(name=name)["uri-params"]["port"])
        kept = [json.loads(record.read_text())["spec"] for record in (self.home / "agent/specs").glob("*.json")]
        (found,) = [spec for spec in kept if spec["port"] == port]
        return dict(found)

    def stored(self, name: str) -> Stored:
        """The files of the repository of a service, or of the metadata: `platform`."""
        from tests.contract.processes import metadata
        from tests.plugins.objects import Stored

        mine = f"select id from service where name = '{name}' and deleted_at is null"
        ident = name if name == "platform" else metadata(self, mine)
        return Stored(self.home / "backups" / ident / "repo", self.bucket, f"{self.prefix}/{ident}")

    def node_directories(self) -> list[str]:
        """What the agent keeps for nodes."""
        found = self.home / "nodes"
        return sorted(p.name for p in found.iterdir()) if found.exists() else []

    def os_users(self) -> set[str]:
        """OS users whose slot or node lies in this home."""
        records = [*self.home.glob("warm/*/slot.json"), *self.home.glob("nodes/*/slot.json")]
        return {json.loads(record.read_text())["user"] for record in records}

    def processes(self, word: str, but: str = "\0") -> list[int]:
        """Ids of this instance's processes that have `word` in their command line, and not `but`."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if str(self.home) in line and word in line and but not in line:
                        found.append(int(entry.name))
        return found

    def clear(self) -> None:
        """Stop everything, end what is left, remove the home and its OS users. Never fails."""
        subprocess.run([str(self.program), "down"], env=self.env, capture_output=True, timeout=120, check=False)
        for pid in self.processes(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        unfinished = {f"pgherd-{path.name.removeprefix('.making-')}" for path in self.home.glob("warm/.making-*")}
        for user in self.os_users() | unfinished if ROOTED else ():
            for program in ("userdel", "groupdel"):
                subprocess.run([program, user], capture_output=True, check=False)
        delete_beside(self.home)
        self._ports_holder.close()


@contextlib.contextmanager
def running_instance(**options: Any) -> Iterator[Instance]:
    """An instance that is up, and gone afterwards."""
    made = Instance(**options)
    try:
        made.up()
        yield made
    finally:
        made.clear()


@pytest.fixture(scope="session")
def instance() -> Iterator[Instance]:
    """One instance for all tests of this process that only add and remove services of their own."""
    with running_instance() as made:
        yield made


@pytest.fixture(scope="session")
def fragile() -> Iterator[Instance]:
    """An instance whose processes stop where a test says."""
    with running_instance(failpoints=True) as made:
        yield made
