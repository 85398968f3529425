"""How fast a backup is beside pgBackRest by hand, and how much a lost machine loses with a short archive time-out."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path

import psycopg

from tests.bench import gates
from tests.bench.turns import in_turns
from tests.plugins.instance import Instance, running_instance, until

_PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"
_INSERT = "insert into t values (1) returning pg_walfile_name(pg_current_wal_lsn())"
_TIMEOUT = 2  # seconds


def measure_backups(instance: Instance, scale: int, runs: int) -> list[tuple[str, str]]:
    """Full backups of one service by pgherd and by hand with the same configuration, which take turns at being first.

    The mean of many: one backup differs from the next by up to a fifth, more than the gate allows.
    """
    name = instance.create(plan="startup-4")
    fill = [_PGBENCH, "-i", "-q", "-s", str(scale), instance.dsn(name)]
    subprocess.run(fill, check=True, capture_output=True)
    url = f"/pgherd/v1/service/{name}/backup"
    assert instance.finished(instance.call("POST", url, {"full": True}).json(), 600, 0.02)["state"] == "success"
    command = _by_hand(instance)

    def ours() -> float:
        start = time.perf_counter()
        done = instance.finished(instance.call("POST", url, {"full": True}).json(), 600)
        assert done["state"] == "success", done
        return time.perf_counter() - start

    def hand() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    seconds, by_hand = in_turns(ours, hand, runs)
    size = instance.call("GET", url).json()["backups"][-1]["size"] / (1 << 20)
    instance.delete(name)
    here, there = size / seconds, size / by_hand
    what = f"full backup of {size:.0f} MiB, mean of {runs}"
    gates.at_least("throughput of a backup beside pgBackRest by hand", here / there, 0.9)
    return [(what, f"{here:.0f} MiB/s | {there:.0f} MiB/s | {here / there:.2f}")]


def _by_hand(instance: Instance) -> list[str]:
    """The same backup without pgherd, as the service's user."""
    [directory] = [path.parent.parent for path in instance.home.glob("nodes/*/config/pgbackrest.conf")]
    user = json.loads((directory / "slot.json").read_text())["user"]
    script = (directory / "config/pgbackrest-push").read_text()
    program = next(word for word in script.replace("$(", " ").split() if word.endswith("/pgbackrest"))
    command = [program, f"--config={directory}/config/pgbackrest.conf", "--stanza=main", "--type=full"]
    command += ["--start-fast", "--no-expire-auto", "backup"]
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    return [*drop, *command]


def measure_loss(seconds: float = 20) -> list[tuple[str, str]]:
    """With a short time-out: how old a segment's oldest row is when the segment has been archived."""
    with running_instance(archive_timeout_seconds=str(_TIMEOUT)) as instance:
        name = instance.create()
        backup = f"/pgherd/v1/service/{name}/backup"
        assert instance.finished(instance.call("POST", backup, {}).json())["state"] == "success"
        repo = next(instance.home.glob("backups/*-*/repo"))
        ages: list[float] = []
        written: dict[str, float] = {}
        with psycopg.connect(instance.dsn(name), autocommit=True) as connection:
            connection.execute("create table t (i int)")
            known, end = _segments(repo), time.monotonic() + seconds
            while time.monotonic() < end:
                row = connection.execute(_INSERT).fetchone()
                assert row is not None
                written.setdefault(row[0], time.monotonic())
                for found in _segments(repo) - known:
                    known.add(found)
                    if found[:24] in written:
                        ages.append(time.monotonic() - written.pop(found[:24]))
                time.sleep(0.02)
        until(lambda: ages, 10, "a segment was archived")
        stored = statistics.median(path.stat().st_size for path in repo.rglob("0*-*.zst")) / 1024
        instance.delete(name)
    setting = f"archive_timeout_seconds = {_TIMEOUT}"
    return [
        (f"{setting}: age of a segment's oldest row when it is archived, p50", f"{statistics.median(ages):.1f} s | | "),
        (f"{setting}: the same, worst of {len(ages)}", f"{max(ages):.1f} s | | "),
        ("a segment of few rows in the repository", f"{stored:.0f} KiB | | "),
    ]


def _segments(repo: Path) -> set[str]:
    return {path.name for path in repo.rglob("0*-*.zst") if len(path.name) > 60}
