"""Runs every measurement on an instance of its own and writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import requests

from tests.bench import gates
from tests.bench.backups import measure_backups, measure_loss
from tests.bench.floor import Floor
from tests.bench.forks import measure_forks
from tests.bench.load import closed_loop, open_loop
from tests.bench.pools import measure_pool
from tests.bench.settings import measure_update
from tests.plugins.instance import Instance, running_instance, until

REPORT = Path(__file__).parents[2] / "docs/benchmarks.md"


def percentile(times: list[float], percent: int) -> float:
    """The value that `percent` of the times do not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def create_to_first_query(instance: Instance, ca: str) -> tuple[float, str]:
    """Seconds from sending the create to the first answer over TLS through the URI that the API returns; the name."""
    name, client = f"b-{uuid.uuid4().hex[:10]}", instance.client()
    start = time.perf_counter()
    operation = client.create_dbaas_service_pg(name=name, plan="hobbyist-2")
    while operation["state"] == "pending":
        operation = client.get_operation(id=operation["id"])
    assert operation["state"] == "success", operation
    uri = client.get_dbaas_service_pg(name=name)["uri"]
    secret = client.reveal_dbaas_postgres_user_password(service_name=name, username="avnadmin")["password"]
    with psycopg.connect(uri, password=secret, sslmode="verify-full", sslrootcert=ca) as connection:
        connection.execute("select 1")
    return time.perf_counter() - start, name


def warm(instance: Instance, count: int) -> None:
    """Wait until the host has as many directories ready as it keeps."""
    until(lambda: len(list(instance.home.glob("warm/[!.]*"))) >= count, 60, "the warm pool is full")


def measure_creates(instance: Instance, runs: int) -> list[tuple[str, str]]:
    ca = instance.home / "bench-ca.pem"
    ca.write_text(instance.client().get_dbaas_ca_certificate()["certificate"])
    floor = Floor()
    try:
        ours, hand = [], []
        for _ in range(runs):
            warm(instance, 4)
            seconds, name = create_to_first_query(instance, str(ca))
            ours.append(seconds)
            instance.delete(name)
            seconds, process = floor.first_query(floor.directory())
            hand.append(seconds)
            process.send_signal(signal.SIGINT)
            process.wait()
        warm(instance, 4)
        with ThreadPoolExecutor(20) as pool:
            start = time.perf_counter()
            burst = list(pool.map(lambda _: create_to_first_query(instance, str(ca)), range(20)))
            burst_total = time.perf_counter() - start
            list(pool.map(lambda found: instance.delete(found[1]), burst))
            directories = [floor.directory() for _ in range(20)]
            start = time.perf_counter()
            started = list(pool.map(floor.first_query, directories))
            floor_total = time.perf_counter() - start
        for _, process in started:
            process.send_signal(signal.SIGINT)
            process.wait()
    finally:
        floor.clear()
    times = [seconds for seconds, _ in burst]
    by_hand = [seconds for seconds, _ in started]
    gates.at_most("create to first query, p50, seconds", statistics.median(ours), 1.0)
    return [
        _row(f"create to first query, p50 of {runs}", statistics.median(ours), statistics.median(hand)),
        _row("create to first query, p99", percentile(ours, 99), percentile(hand, 99)),
        _row("20 creates at once, p50", statistics.median(times), statistics.median(by_hand)),
        _row("20 creates at once, p99", percentile(times, 99), percentile(by_hand, 99)),
        _row("20 creates at once, all", burst_total, floor_total),
    ]


def _row(what: str, ours: float, floor: float) -> tuple[str, str]:
    return what, f"{ours:.3f} s | {floor:.3f} s | {ours / floor:.1f}"


def measure_reads(instance: Instance, seconds: float) -> list[tuple[str, str]]:
    name = instance.create()
    warm(instance, 4)  # the reads are measured, not the initdb beside them
    url = urlsplit(f"{instance.endpoint}/dbaas-postgres/{name}")
    prepared = instance.sign(requests.Request("GET", url.geturl()))
    signed = prepared.headers["Authorization"]
    request = f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: {signed}\r\n\r\n".encode()
    where = ("127.0.0.1", url.port or 80, request)
    due = open_loop(*where, connections=16, seconds=seconds, rate=200)
    one = closed_loop(*where, connections=1, seconds=seconds)
    many = closed_loop(*where, connections=16, seconds=seconds)
    instance.delete(name)
    gates.at_most("GET service, p99, seconds", percentile(due, 99), 0.010)
    return [
        ("GET service, open loop, 200/s over 16 connections, p50", f"{percentile(due, 50) * 1000:.1f} ms | | "),
        ("GET service, open loop, 200/s over 16 connections, p99", f"{percentile(due, 99) * 1000:.1f} ms | | "),
        ("GET service, closed loop, 1 connection", f"{len(one) / seconds:.0f} req/s | | "),
        ("GET service, closed loop, 16 connections", f"{len(many) / seconds:.0f} req/s | | "),
    ]


def _pss(pids: list[int]) -> float:
    """MB of proportional set size; a process that ended meanwhile counts nothing."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(grandchild for child in found for grandchild in _children(int(child)))]


def measure_memory(instance: Instance) -> list[tuple[str, str]]:
    before = _pss(sorted({p for pid in instance.processes("") for p in _children(pid)}))
    name = instance.create()
    time.sleep(15)  # a service that has settled, with its first observations behind it
    nodes = sorted({p for pid in instance.processes("/nodes/") for p in _children(pid)})
    service = _pss(nodes)
    instance.delete(name)
    return [
        ("memory (PSS) of pgherd: API, worker, agent, metadata PostgreSQL, s6", f"{before:.0f} MB | | "),
        ("memory (PSS) of an idle service", f"{service:.0f} MB | | "),
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="creates one after another, updates and backups")
    parser.add_argument("--seconds", type=float, default=10, help="length of each load")
    parser.add_argument("--scale", type=int, default=64, help="pgbench's scale for the backups, 16 MB each")
    chosen = parser.parse_args()
    with running_instance(warm_pool="4") as instance:
        warm(instance, 4)
        rows = measure_memory(instance)
        rows += measure_reads(instance, chosen.seconds)
        rows += measure_update(instance, chosen.runs)
        rows += measure_pool(instance, int(chosen.seconds * 3))
        rows += measure_creates(instance, chosen.runs)
        rows += measure_forks(instance)
        rows += measure_backups(instance, chosen.scale, chosen.runs)
    rows += measure_loss()
    version = subprocess.run(["/usr/lib/postgresql/15/bin/postgres", "--version"], capture_output=True, text=True)
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    text = (
        "# Benchmarks\n\nWritten by `make bench`. The floor is the same work by hand in the same run: a directory"
        " that is already initialised, started and asked once over TLS.\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({processor}), {memory:.0f} GiB,"
        f" Linux {platform.release()}, {version.stdout.strip()}, load {os.getloadavg()[0]:.1f} at the end.\n\n"
        "| what | pgherd | floor | ratio |\n|---|---|---|---|\n"
    )
    text += "".join(f"| {what} | {values} |\n" for what, values in rows)
    REPORT.write_text(text)
    print(text)
    if gates.missed:
        sys.exit("\n".join(gates.missed))


if __name__ == "__main__":
    main()
