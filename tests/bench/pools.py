"""200 clients through a transaction pool of ten, beside a PgBouncer configured by hand before the same server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from pgherd.drivers.limits import Limits
from tests.bench import gates
from tests.bench.turns import in_turns
from tests.plugins.instance import Instance, free_port, until

PGBOUNCER = "/usr/local/lib/pgherd/pgbouncer/bin/pgbouncer"
PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"
CLIENTS, SIZE = 200, 10
GATE = 0.95  # of what the one by hand does in the same run
ROUNDS = 6  # one run each; a single run of 30 s differs from the next one by up to a tenth, more than the gate allows


def measure_pool(instance: Instance, seconds: int) -> list[tuple[str, str]]:
    """Transactions per second of both, the mean of runs that take turns at being first; no run may have an error."""
    name, client = instance.create(plan="startup-4"), instance.client()
    admin = client.reveal_dbaas_postgres_user_password(service_name=name, username="avnadmin")["password"]
    opened = client.create_dbaas_pg_connection_pool(
        service_name=name, name="bench", database_name="defaultdb", mode="transaction", size=SIZE, username="avnadmin"
    )
    assert instance.finished(opened)["state"] == "success"
    params = client.get_dbaas_service_pg(name=name)["uri-params"]
    direct = {"PGHOST": params["host"], "PGPORT": params["port"], "PGUSER": "avnadmin", "PGPASSWORD": admin}
    environment = {**os.environ, **direct, "PGSSLMODE": "require"}
    subprocess.run([PGBENCH, "-i", "-q", "-s", "10", "defaultdb"], env=environment, check=True, capture_output=True)
    with _by_hand(instance.home, int(params["port"]), admin) as port:
        ours = {**environment, "PGPORT": str(int(params["port"]) + 1)}
        hand = {**environment, "PGPORT": str(port)}
        here, there = in_turns(
            lambda: _pgbench(ours, "bench", seconds), lambda: _pgbench(hand, "bench", seconds), ROUNDS
        )
    instance.delete(name)
    what = f"pgbench, {CLIENTS} clients through a transaction pool of {SIZE}, prepared statements, TLS"
    ratio = here / there
    gates.at_least("pgbench through a pool beside PgBouncer by hand", ratio, GATE)
    return [(what, f"{here:.0f} tps | {there:.0f} tps | {ratio:.2f} (at least {GATE})")]


def _pgbench(environment: dict[str, str], pool: str, seconds: int) -> float:
    # A thread a client: pgbench prepares with a blocking call, inside a transaction, so clients that share a thread
    # would wait for a server that another client of the same thread holds.
    argv = [PGBENCH, "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", str(CLIENTS), "-T", str(seconds), pool]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "failed transactions: 0 " in done.stdout, done.stdout
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    assert found
    return float(found[1])


@contextlib.contextmanager
def _by_hand(home: Path, port: int, password: str) -> Iterator[int]:
    """The shortest configuration that does the same: TLS and SCRAM for clients, a pool of ten over the same socket.

    As the service's OS user, whom alone the socket is open to, and in its control groups: it is the configuration
    that is compared, not what a neighbour may take from the service.
    """
    root, listen = Path(tempfile.mkdtemp(prefix="pgherd-floor-")), free_port()
    (node,) = (found for found in (home / "nodes").iterdir() if (found / "run" / f".s.PGSQL.{port}").exists())
    account = (node / "run").stat()
    for file in ("server.crt", "server.key"):
        shutil.copy(node / "config" / file, root / file)
    (root / "users.txt").write_text(f'"avnadmin" "{password}"\n')
    (root / "pgbouncer.ini").write_text(
        f"[databases]\nbench = host={node / 'run'} port={port} dbname=defaultdb user=avnadmin\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {listen}\nauth_type = scram-sha-256\nauth_file = {root}/users.txt\n"
        f"pool_mode = transaction\ndefault_pool_size = {SIZE}\nmax_client_conn = 1000\nmax_prepared_statements = 100\n"
        f"client_tls_sslmode = require\nclient_tls_cert_file = {root}/server.crt\n"
        f"client_tls_key_file = {root}/server.key\nserver_tls_sslmode = disable\nunix_socket_dir =\n"
    )
    identity = {"user": account.st_uid, "group": account.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    for path in (root, *root.iterdir()):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if identity:
            os.chown(path, account.st_uid, account.st_gid)
    process = subprocess.Popen(  # type: ignore[call-overload]
        [PGBOUNCER, str(root / "pgbouncer.ini")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity
    )
    for group in Limits(home).groups(node.name):
        (group / "cgroup.procs").write_text(str(process.pid))
    try:
        until(lambda: _answers(listen, password), 10, "the PgBouncer by hand answers")
        yield listen
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(root)


def _answers(port: int, password: str) -> bool:
    where = {"host": "127.0.0.1", "port": port, "user": "avnadmin", "dbname": "bench", "sslmode": "require"}
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(password=password, **where):  # type: ignore[arg-type]
        return True
    return False
