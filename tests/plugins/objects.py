"""An S3-compatible server: OpenStack Swift with its S3 API on loopback, behind a front that speaks TLS and can fail.

With `--repository s3` every repository that a test makes lies there, of hosts and of whole instances; tests of what
is done with repositories have the mark `repository`, so that `-m repository` runs them so once more.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import http.client
import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.host import RunningHost
from tests.plugins.instance import Instance

_BIN = Path(sys.executable).parent
#: To prove a backup is a request for each file of it, and Swift takes 10 ms of a processor for one.
PATIENCE = 4
_SERVERS = ("account", "container", "object")
_KEEP = """user = {user}
swift_dir = {base}
devices = {base}/devices
mount_check = false
workers = 0
log_level = ERROR
"""
_RINGS = """
import sys
from swift.common.ring.builder import RingBuilder
for name, port in (word.split("=") for word in sys.argv[2:]):
    builder = RingBuilder(4, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""
_STORAGE = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
{keep}[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
{keep}[pipeline:main]
pipeline = catch_errors cached s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cached]
paste.filter_factory = tests.plugins.objects_cache:cached
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


class Bucket:
    """A bucket of a server of its own. `fault` makes the front fail from now on, see `Front`."""

    key, secret, bucket, region = "test:tester", "opens-the-bucket", "backups", "us-east-1"

    def __init__(self, base: Path) -> None:
        self.base, self.answer = base, b""
        self._running: list[subprocess.Popen[bytes]] = []
        ports = {name: _free_port() for name in (*_SERVERS, "proxy")}
        policy = "[storage-policy:0]\nname = one\ndefault = yes\n"
        (base / "swift.conf").write_text(
            f"[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n{policy}"
        )
        (base / "devices/d1").mkdir(parents=True)
        keep = _KEEP.format(base=base, user=getpass.getuser())
        rings = [sys.executable, "-c", _RINGS, base, *(f"{name}={ports[name]}" for name in _SERVERS)]
        subprocess.run(rings, check=True)
        for name in _SERVERS:
            (base / f"{name}.conf").write_text(_STORAGE.format(port=ports[name], keep=keep, name=name))
        (base / "proxy.conf").write_text(_PROXY.format(port=ports["proxy"], keep=keep, secret=self.secret))
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        for name in ports:
            with open(base / f"{name}.log", "wb") as log:
                argv = [_BIN / f"swift-{name}-server", base / f"{name}.conf"]
                self._running.append(subprocess.Popen(argv, stdout=log, stderr=log, env=env))
        self.ca = _certificate(base)
        self.front = Front(ports["proxy"], base)
        self.endpoint = f"localhost:{self.front.server_port}"

    def make(self) -> None:
        """Make the bucket, as soon as the server answers."""
        deadline = time.monotonic() + 120
        while self.call("PUT", "") != 200:
            assert time.monotonic() < deadline, (self.answer, (self.base / "proxy.log").read_text()[-500:])
            time.sleep(0.05)

    def objects(self) -> int:
        """How many objects' files the server has on disk."""
        return sum(1 for _ in (self.base / "devices/d1/objects").rglob("*.data"))

    def settings(self, prefix: str) -> dict[str, str]:
        """The settings of an instance whose repositories lie here, below `prefix`."""
        named = {"endpoint": self.endpoint, "bucket": self.bucket, "key": self.key, "secret": self.secret}
        named |= {"ca_file": str(self.base / "server.crt"), "prefix": prefix}
        return {f"backup_s3_{name}": value for name, value in named.items()}

    def call(self, method: str, name: str, body: bytes = b"", **query: str) -> int:
        """One signed request to the server itself, whatever the front does; 0: it does not answer yet."""
        port, path = self.front.behind, urllib.parse.quote(f"/{self.bucket}/{name}".rstrip("/"))
        when, content = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), hashlib.sha256(body).hexdigest()
        head = {"host": f"127.0.0.1:{port}", "x-amz-content-sha256": content, "x-amz-date": when}
        names = ";".join(sorted(head))
        asked = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="")
        lines = [method, path, asked, *(f"{name}:{head[name]}" for name in sorted(head)), "", names, content]
        scope = f"{when[:8]}/{self.region}/s3/aws4_request"
        said = "\n".join(["AWS4-HMAC-SHA256", when, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
        key = f"AWS4{self.secret}".encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        signature = hmac.digest(key, said.encode(), "sha256").hex()
        named = f"Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            headers = {**head, "authorization": f"AWS4-HMAC-SHA256 {named}"}
            connection.request(method, path + (f"?{asked}" if asked else ""), body, headers)
            answer = connection.getresponse()
            self.answer = answer.read()
            return answer.status
        except OSError:
            return 0
        finally:
            connection.close()

    def close(self) -> None:
        """End the server."""
        self.front.shutdown()
        self.front.server_close()
        for process in self._running:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Stored:
    """The files of one repository, by their names below it, wherever it lies."""

    directory: Path
    bucket: Bucket | None = None
    prefix: str = ""

    def names(self, below: str = "") -> list[str]:
        """Every file whose name begins so, in order."""
        if self.bucket is None:
            found = (str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file())
            return sorted(name for name in found if name.startswith(below))
        keys: list[str] = []
        more = True
        while more:
            after = {"marker": keys[-1]} if keys else {}
            assert self.bucket.call("GET", "", prefix=f"{self.prefix}/{below}", **after) == 200, self.bucket.answer
            keys += re.findall(r"<Key>(.+?)</Key>", self.bucket.answer.decode())
            more = b"<IsTruncated>true" in self.bucket.answer
        return sorted(key.removeprefix(f"{self.prefix}/") for key in keys)

    def read(self, name: str) -> bytes:
        """What is in a file."""
        if self.bucket is None:
            return (self.directory / name).read_bytes()
        assert self.bucket.call("GET", f"{self.prefix}/{name}") == 200, self.bucket.answer
        return self.bucket.answer

    def write(self, name: str, content: bytes) -> None:
        """Let a file hold this; one that is made anew belongs to whom the repository does."""
        if self.bucket is None:
            (self.directory / name).write_bytes(content)
            owner = self.directory.stat()
            os.chown(self.directory / name, owner.st_uid, owner.st_gid)
        else:
            assert self.bucket.call("PUT", f"{self.prefix}/{name}", content) == 200, self.bucket.answer

    def remove(self, name: str) -> None:
        """Let there be no such file."""
        if self.bucket is None:
            (self.directory / name).unlink()
        else:
            assert self.bucket.call("DELETE", f"{self.prefix}/{name}") == 204, self.bucket.answer

    def clear(self) -> None:
        """Let there be nothing of it."""
        if self.bucket is None:
            shutil.rmtree(self.directory)
        else:
            for name in self.names():
                self.remove(name)

    def flip(self, name: str, offset: int | None = None) -> None:
        """Change one bit, in the middle of the file if no place is given; a second time puts it back."""
        content = bytearray(self.read(name))
        content[len(content) // 2 if offset is None else offset] ^= 1
        self.write(name, bytes(content))


class Front(http.server.ThreadingHTTPServer):
    """Ends TLS and passes requests on. `fault`: None, a status that it answers instead, `close` (no answer), `half` (an
    object is cut in the middle while it is written), `slow`, or `skew` (what S3 says to a clock that is wrong). `asked`
    counts all requests, `failed` those that it made fail."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, base: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.behind, self.fault = port, None  # type: int, int | str | None
        self.asked = self.failed = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(base / "server.crt", base / "server.key")
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread."""
        try:
            with self._tls.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except OSError:
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ends early is what is asked for."""


class _Passage(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is written in parts; the second would wait for the first to be confirmed
    server: Front

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.server.fault
        self.server.asked += 1
        if fault is not None and not (fault == "half" and self.command != "PUT"):
            self.server.failed += 1
        if isinstance(fault, int):
            self._answer(fault, {}, b"<Error><Code>Injected</Code></Error>")
            return
        if fault == "skew":
            self._answer(403, {}, b"<Error><Code>RequestTimeTooSkewed</Code></Error>")
            return
        if fault == "close":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(min(5.0, 0.2 + len(body) / 10_000))
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        try:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                behind.putheader(name, value)
            behind.endheaders()
            if fault == "half" and self.command == "PUT":
                behind.send(body[: len(body) // 2])
                self.close_connection = True
                return
            if body:
                behind.send(body)
            answer = behind.getresponse()
            content = answer.read()
            self._answer(answer.status, dict(answer.getheaders()), content)
        finally:
            behind.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        own = ("content-length", "transfer-encoding", "connection")
        kept = {name: value for name, value in headers.items() if name.lower() not in own}
        length = str(len(content))
        if self.command == "HEAD":
            length = next((v for k, v in headers.items() if k.lower() == "content-length"), "0")
        for name, value in {**kept, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _certificate(base: Path) -> str:
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    argv += ["-keyout", str(base / "server.key"), "-out", str(base / "server.crt")]
    subprocess.run(argv, check=True, capture_output=True)
    (base / "server.crt").chmod(0o644)
    return (base / "server.crt").read_text()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where repositories lie."""
    words = "where the tests' repositories lie, unless a test says so itself"
    parser.addoption("--repository", choices=("directory", "s3"), default="directory", help=words)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What has its repository in the bucket has more time."""
    for item in items if config.getoption("repository") == "s3" else ():
        given = item.get_closest_marker("timeout")
        usual = given.args[0] if given else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(usual * PATIENCE), append=False)


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """One server for all tests of this process."""
    base = Path(tempfile.mkdtemp(prefix="pgherd-objects-", dir="/var/tmp"))
    base.chmod(0o755)  # for the certificate
    made = Bucket(base)
    try:
        made.make()
        yield made
    finally:
        made.close()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _repositories(request: pytest.FixtureRequest) -> None:
    """With `--repository s3` whoever makes a repository has the bucket for it."""
    if request.config.getoption("repository") == "s3":
        RunningHost.bucket = Instance.bucket = request.getfixturevalue("bucket")
        Instance.patience = PATIENCE
