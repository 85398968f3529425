"""When a service's disk is measured, and what its guard looks like."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgherd.agent.disk import FULL, Meter, Watch
from pgherd.drivers import postgres_guard
from pgherd.drivers.disk import Space, Usage
from pgherd.drivers.postgres import Cluster, Program
from pgherd.drivers.postgres_guard import Guard
from pgherd.spec import Admin, Memory, NodeSpec, Tls

GIB = 1 << 30
SPEC = NodeSpec("n", "s", 1, "n-1", "running", "15", 30000, Memory(1, 1, 1, 1), 25, {}, [], True, Admin("a", ""),
                Tls("", ""), 8 * GIB)  # fmt: skip
ROOMY = Space(100 * GIB, 50 * GIB)


def meter(used: int, capacity: int = 0, **more: Any) -> Meter:
    cluster = Cluster(Program("15", Path("/bin"), "15.1"), Path("/nowhere"), None)
    given = {"usage": Usage(used, capacity), "at": time.monotonic(), "loaded": True} | more
    return Meter(SPEC, cluster, **given)


def due(measured: Meter, grown: int = 0, moved: int = 0, host: Space = ROOMY, percent: int = 5) -> bool:
    watch = Watch(Path("/nowhere"), percent, list, lambda spec: None, lambda node: None)
    watch._grown, watch._moved = grown, max(grown, moved)
    watch.meters = {"n": measured}
    return watch._is_due(measured, host)


def test_share_and_what_is_left() -> None:
    assert meter(4 * GIB).share == 0.5
    assert meter(4 * GIB, 4 * GIB).share == 1
    assert meter(4 * GIB, 16 * GIB).share == 0.5
    assert meter(4 * GIB).left == pytest.approx(8 * GIB * FULL - 4 * GIB)
    assert meter(9 * GIB).left == 0


def test_measured_when_it_may_be_near_its_limit() -> None:
    assert not due(meter(GIB))
    assert not due(meter(GIB, at=time.monotonic() - 61)), "nothing happens on the host"
    assert due(meter(GIB, at=time.monotonic() - 61), moved=GIB), "something was freed"
    assert due(meter(GIB, at=time.monotonic() - 601))
    assert not due(meter(GIB), grown=GIB)
    assert due(meter(GIB), grown=2 * GIB)
    assert due(meter(int(7.7 * GIB)), grown=64 << 20)
    near = int(7.5 * GIB)
    assert not due(meter(near))
    assert due(meter(near, at=time.monotonic() - 4))
    assert not due(meter(near, at=time.monotonic() - 4, cost=1.0)), "at most a tenth of the time"
    assert due(meter(GIB, loaded=False, at=time.monotonic() - 4)), "a guard that the server has not loaded"
    assert due(meter(GIB, at=time.monotonic() - 4), host=Space(100 * GIB, 9 * GIB)), "the host runs short"


def test_a_stopped_service_is_left_alone() -> None:
    stopped = meter(int(7.9 * GIB), loaded=False, at=time.monotonic() - 30)
    stopped.spec = msgspec.structs.replace(SPEC, desired="stopped")
    assert not due(stopped)
    stopped.at -= 31
    assert due(stopped, moved=GIB)


def test_a_guard_is_what_its_file_says() -> None:
    for guard in (Guard(), Guard("plan", 1700000000), Guard("host", 1)):
        text = postgres_guard.render(guard)
        assert postgres_guard.parse(text) == guard
        assert ("default_transaction_read_only = on" in text) == bool(guard.why)


def test_a_spec_of_an_older_control_plane_has_no_limit() -> None:
    bare = meter(GIB)
    bare.spec = msgspec.structs.replace(SPEC, disk_bytes=0)
    assert bare.share == 0
    assert bare.left == float("inf")
