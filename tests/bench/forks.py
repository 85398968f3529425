"""Forks of a service of 1 GB, beside the steps by hand in the same run; and the same on XFS, which clones."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import gates
from tests.contract.processes import metadata
from tests.plugins.instance import Instance, free_port, running_instance

BIN = Path("/usr/lib/postgresql/15/bin")
SCALE = 68  # of pgbench: about 1 GB
#: The most that a fork may take, times the steps by hand; and on XFS, in seconds.
GATE, CLONED = 1.3, 3.0


def measure_forks(instance: Instance, runs: int = 3) -> list[tuple[str, str]]:
    """Rows of the report."""
    name = _filled(instance)
    hand, ours = [], []
    for _ in range(runs):
        hand.append(_by_hand(instance, name))
        ours.append(_fork(instance, name))
    instance.delete(name)
    ratio = statistics.median(ours) / statistics.median(hand)
    rows = [_row(f"fork of 1 GB to the first query, p50 of {runs}", statistics.median(ours), statistics.median(hand))]
    if os.geteuid() == 0:
        with _xfs() as place, _home_in(place), running_instance() as cloning:
            name = _filled(cloning)
            times = [_fork(cloning, name) for _ in range(runs)]
        rows.append(("the same on XFS, which clones", f"{statistics.median(times):.3f} s | | "))
        gates.at_most("fork of 1 GB on XFS, seconds", statistics.median(times), CLONED)
    gates.at_most("fork of 1 GB beside the steps by hand", ratio, GATE)
    return rows


def _row(what: str, ours: float, floor: float) -> tuple[str, str]:
    return what, f"{ours:.3f} s | {floor:.3f} s | {ours / floor:.1f}"


def _filled(instance: Instance) -> str:
    name = instance.create(plan="startup-4")
    env = os.environ | {"PGPASSWORD": ""}
    argv = [str(BIN / "pgbench"), "-i", "-q", "-s", str(SCALE), instance.dsn(name)]
    subprocess.run(argv, check=True, capture_output=True, env=env)
    instance.sql(name, "vacuum")
    return name


def _fork(instance: Instance, source: str) -> float:
    client, name, start = instance.client(), f"f-{os.urandom(4).hex()}", time.perf_counter()
    operation = client.create_dbaas_service_pg(name=name, plan="startup-4", fork_from_service=source)
    while operation["state"] == "pending":
        operation = client.get_operation(id=operation["id"])
    assert operation["state"] == "success", operation
    assert instance.sql(name, "select bbalance from pgbench_branches limit 1") == [(0,)]
    seconds = time.perf_counter() - start
    instance.delete(name)
    return seconds


def _by_hand(instance: Instance, name: str) -> float:
    """Backup start, cp -a, backup stop, start, the first query; as the source's own user, who may do all of it."""
    node = metadata(instance, f"select n.id from node n join service s on s.id = n.service_id where s.name = '{name}'")
    directory = instance.home / "nodes" / node
    source, port = directory / "data/pgdata", instance.client().get_dbaas_service_pg(name=name)["uri-params"]["port"]
    user, work = source.owner(), directory / "data" / "by-hand"
    session = subprocess.Popen(
        _as(user, str(BIN / "psql"), "-XqAt", "-h", str(directory / "run"), "-p", port, "-U", "postgres"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert session.stdin and session.stdout
    start = time.perf_counter()
    session.stdin.write("set statement_timeout = 0; select pg_backup_start('by hand', true);\n")
    session.stdin.flush()
    session.stdout.readline()
    # cp ends with 1 when a file of the live server goes meanwhile, as a backup's history does; the query below judges.
    subprocess.run(_as(user, "cp", "-a", str(source), str(work)), check=False)
    session.stdin.write("select labelfile from pg_backup_stop(false);\n")
    label = session.communicate()[0]
    script = (
        'cd "$1" && rm -f postmaster.pid && cat >backup_label && rm -rf pg_replslot/*'
        ' && echo "local all all trust" >pg_hba.conf'
    )
    subprocess.run(_as(user, "sh", "-c", script, "sh", str(work)), input=label.strip() + "\n", text=True, check=True)
    # What was written since is copied with the rest of the WAL.
    newest = f'cp -a "{source}"/pg_wal/0* "{work}"/pg_wal/'
    subprocess.run(_as(user, "sh", "-c", newest), check=False)
    mine = str(free_port())
    server = subprocess.Popen(
        _as(user, str(BIN / "postgres"), "-D", str(work), "-p", mine, "-c", f"unix_socket_directories={work}"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _first_query(user, work, mine)
    seconds = time.perf_counter() - start
    server.terminate()
    server.wait()
    subprocess.run(_as(user, "rm", "-rf", str(work)), check=True)
    return seconds


def _first_query(user: str, work: Path, port: str) -> None:
    asked = _as(user, str(BIN / "psql"), "-XqAt", "-h", str(work), "-p", port, "-U", "postgres", "-c", "select 1")
    end = time.monotonic() + 120
    while subprocess.run(asked, capture_output=True, check=False).returncode:
        assert time.monotonic() < end, "the server that was started by hand does not answer"
        time.sleep(0.01)


def _as(user: str, *argv: str) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv] if os.geteuid() == 0 else [*argv]


@contextlib.contextmanager
def _xfs() -> Iterator[Path]:
    # Short: the sockets of an instance that lies here have room for 107 characters.
    work = Path(tempfile.mkdtemp(prefix="px-", dir="/var/tmp"))
    work.chmod(0o755)
    place = work / "x"
    place.mkdir()
    with open(work / "image", "wb") as image:
        image.truncate(12 << 30)
    subprocess.run(["/sbin/mkfs.xfs", "-q", "-m", "reflink=1", str(work / "image")], check=True)
    subprocess.run(["mount", "-o", "loop", str(work / "image"), str(place)], check=True)
    place.chmod(0o755)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        shutil.rmtree(work)


@contextlib.contextmanager
def _home_in(place: Path) -> Iterator[None]:
    usual, tempfile.tempdir = tempfile.tempdir, str(place)
    try:
        yield
    finally:
        tempfile.tempdir = usual


if __name__ == "__main__":
    with running_instance() as made:
        print(measure_forks(made), *gates.missed)
