"""A setting that needs no restart: from the call until PostgreSQL shows it, and the same by hand."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from tests.bench import gates
from tests.bench.floor import Floor
from tests.plugins.instance import Instance


def measure_update(instance: Instance, runs: int) -> list[tuple[str, str]]:
    """Seconds until a change is in force, and until its operation has ended."""
    name, client, ended = instance.create(), instance.client(), []
    with psycopg.connect(instance.dsn(name), autocommit=True) as connection:

        def change(kilobytes: int) -> Callable[[], object]:
            operation = client.update_dbaas_service_pg(name=name, pg_settings={"log_temp_files": kilobytes})
            return lambda: instance.finished(operation)

        ours = [_in_force(connection, 1000 + run, change, ended) for run in range(runs)]
    instance.delete(name)
    hand = _by_hand(runs)
    gates.at_most("a setting in force after its update, p50, seconds", statistics.median(ours), 1.0)
    return [
        _row(f"a setting in force after its update, p50 of {runs}", statistics.median(ours), statistics.median(hand)),
        _row("a setting in force, the slowest", max(ours), max(hand)),
        (f"its operation has ended, p50 of {runs}", f"{statistics.median(ended):.3f} s | | "),
    ]


def _in_force(
    connection: psycopg.Connection[Any], value: int, change: Callable[[int], Callable[[], object]], ended: list[float]
) -> float:
    start = time.perf_counter()
    end = change(value)
    _until_shown(connection, value)
    seconds = time.perf_counter() - start
    end()
    ended.append(time.perf_counter() - start)
    return seconds


def _until_shown(connection: psycopg.Connection[Any], kilobytes: int) -> None:
    deadline = time.perf_counter() + 30
    while connection.execute("SHOW log_temp_files").fetchone() != (f"{kilobytes}kB",):
        assert time.perf_counter() < deadline, "the setting does not come into force"
        time.sleep(0.001)


def _by_hand(runs: int) -> list[float]:
    """The floor: one line in a file, pg_reload_conf(), SHOW until it says so."""
    floor, seconds = Floor(), []
    directory = floor.directory()
    _, process = floor.first_query(directory)
    conf: Path = directory / "postgresql.conf"
    text = conf.read_text()
    port = (directory / "postmaster.pid").read_text().splitlines()[3]
    with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres", autocommit=True) as connection:
        for run in range(runs):
            start = time.perf_counter()
            conf.write_text(f"{text}\nlog_temp_files = {1000 + run}\n")
            connection.execute("SELECT pg_reload_conf()")
            _until_shown(connection, 1000 + run)
            seconds.append(time.perf_counter() - start)
    process.send_signal(signal.SIGINT)
    process.wait()
    floor.clear()
    return seconds


def _row(what: str, ours: float, floor: float) -> tuple[str, str]:
    return what, f"{ours:.3f} s | {floor:.4f} s | {ours / floor:.1f}"
