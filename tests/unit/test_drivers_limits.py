"""How many processors this host leaves to its processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgherd.drivers import limits


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, and control groups of both versions without a quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cgroup").write_text("9:pids:/\n3:cpu,cpuacct:/agent/inner\n0::/agent/inner\n")
    one, two = tmp_path / "one", tmp_path / "two"
    (tmp_path / "mounts").write_text(f"c {one} cgroup rw,cpu,cpuacct 0 0\nc {two} cgroup2 rw 0 0\nx / ext4 rw 0 0\n")
    for root in (one, two):
        (root / "agent/inner").mkdir(parents=True)
    (one / "agent/inner/cpu.cfs_quota_us").write_text("-1\n")
    (one / "agent/inner/cpu.cfs_period_us").write_text("100000\n")
    (two / "agent/inner/cpu.max").write_text("max 100000\n")
    return tmp_path


def cores(host: Path) -> int:
    return limits.cores(host / "cgroup", host / "mounts")


def test_all_that_the_affinity_leaves(host: Path) -> None:
    assert cores(host) == 8


@pytest.mark.parametrize("group", ["agent", "agent/inner", "."])
def test_a_quota_counts_wherever_it_stands(host: Path, group: str) -> None:
    (host / "two" / group / "cpu.max").write_text("350000 100000\n")
    assert cores(host) == 3
    (host / "one" / group / "cpu.cfs_quota_us").write_text("50000\n")
    (host / "one" / group / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(host) == 1


def test_this_host_has_some() -> None:
    assert 1 <= limits.cores() <= (os.cpu_count() or 1)
