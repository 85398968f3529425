"""What one node may take of its host, and that nothing of it stays."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import msgspec
import psycopg
import pytest

from pgherd.drivers.limits import Bounds, Limits, bounds
from pgherd.errors import HostFault
from tests.plugins.host import RunningHost, rooted, until
from tests.plugins.instance import process_state

_MIB = 1 << 20
limited = pytest.mark.skipif(
    bool(Limits(Path("/nonexistent")).problem), reason="needs root and writable control groups of every kind"
)


@limited
def test_a_hungry_backend_is_killed_and_postgres_comes_back(host: RunningHost) -> None:
    spec = host.running(memory_bytes=128 * _MIB, cpus=2)
    innocent = host.running(memory_bytes=128 * _MIB, cpus=2)
    with host.connect(innocent) as neighbour:
        postmaster = host.postmaster(spec)
        with pytest.raises(psycopg.OperationalError), host.connect(spec) as connection:
            connection.execute("SELECT length(repeat('x', 700 * 1024 * 1024))")
        until(lambda: _connects(host, spec), 20)
        assert neighbour.execute("SELECT 1").fetchone() == (1,)
    assert host.postmaster(spec) == postmaster
    # Some containers do not let root protect a process.
    protect = "{ echo -500 >/proc/self/oom_score_adj; } 2>/dev/null; read n </proc/self/oom_score_adj; echo $n"
    possible = subprocess.run(["sh", "-c", protect], capture_output=True, text=True, check=True).stdout
    assert Path(f"/proc/{postmaster}/oom_score_adj").read_text() == possible
    for gone in (spec, innocent):
        host.until_in_force(host.change(gone, desired="absent"), 60)


@limited
def test_every_process_of_a_node_is_in_its_groups_and_nothing_stays(host: RunningHost) -> None:
    spec = host.running(memory_bytes=2048 * _MIB, cpus=2)
    limits = host.agent.host.limits
    groups = limits.groups(spec.node_id)
    with host.connect(spec):
        members = {pid for group in groups for pid in (group / "cgroup.procs").read_text().split()}
        assert str(host.postmaster(spec)) in members and len(members) > 5
        outside = [pid for pid in members if not limits.holds(spec.node_id, int(pid))]
        # A worker of autovacuum may have ended since.
        assert not [pid for pid in outside if process_state(int(pid)) not in ("", "Z", "X")]
        assert not limits.holds(spec.node_id, os.getpid())
    assert _read(groups, "memory.limit_in_bytes", "memory.max") == str(2304 * _MIB)
    assert _read(groups, "pids.max") == str(2 * 25 + 256)
    assert _read(groups, "cpu.shares", "cpu.weight") in ("2048", "200")
    spec = host.change(spec, memory_bytes=4096 * _MIB, cpus=4)
    host.until_in_force(spec)
    assert _read(groups, "memory.limit_in_bytes", "memory.max") == str(4608 * _MIB)
    host.until_in_force(host.change(spec, desired="absent"), 60)
    assert not [group for group in groups if group.exists()]


@limited
def test_a_bomb_of_processes_stays_among_its_own(host: RunningHost) -> None:
    spec = host.running(cpus=1)
    bomb = "for i in $(seq 1000); do sleep 5 & done; echo"
    with pytest.raises(HostFault):
        host.sql(spec, f"COPY (SELECT 1) TO PROGRAM '{bomb}';")
    group = next(g for g in host.agent.host.limits.groups(spec.node_id) if (g / "pids.max").exists())
    assert int((group / "pids.current").read_text()) <= 2 * 25 + 256
    until(lambda: _connects(host, spec), 20)
    host.until_in_force(host.change(spec, desired="absent"), 60)
    assert not group.exists()


def test_bounds_leave_headroom_and_let_the_host_live(host: RunningHost) -> None:
    spec = host.spec(memory_bytes=2048 * _MIB, cpus=2)
    assert bounds(spec, 64 << 30) == Bounds(2304 * _MIB, 306, 2)
    assert bounds(spec, 1 << 30).memory == (1 << 30) * 85 // 100
    assert bounds(msgspec.structs.replace(spec, memory_bytes=0), 1 << 30).memory == 0


@rooted
def test_files_of_version_2(tmp_path: Path) -> None:
    """A tree of plain files stands for a hierarchy of version 2, which this machine need not have."""
    root = tmp_path / "unified"
    limits = Limits(tmp_path, _mounts(tmp_path, f"cgroup2 {root} cgroup2 rw 0 0", root))
    for place in (root, root / limits.name, root / limits.name / "n"):
        place.mkdir(exist_ok=True)
        for name in ("cgroup.subtree_control", "memory.max", "memory.swap.max", "pids.max", "cpu.weight"):
            (place / name).touch()
    limits.ensure("n", Bounds(1000, 20, 3))
    group = root / limits.name / "n"
    assert limits.groups("n") == [group]
    found = [(group / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.weight")]
    assert found == ["1000", "0", "20", "300"]
    assert (group.parent / "cpu.weight").read_text() == "400"


@rooted
def test_where_nothing_is_permitted_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Limits(tmp_path, _mounts(tmp_path, ""))
    assert none.problem and none.groups("n") == []
    none.ensure("n", Bounds(1, 1, 1))
    none.remove("n")
    root = tmp_path / "unified"
    sealed = Limits(tmp_path, _mounts(tmp_path, f"cgroup2 {root} cgroup2 rw 0 0", root))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    sealed.ensure("n", Bounds(1, 1, 1))


def _mounts(tmp_path: Path, line: str, root: Path | None = None) -> Path:
    table = tmp_path / "mounts"
    table.write_text(line + "\n" if line else "")
    if root is not None:
        root.mkdir(exist_ok=True)
        (root / "cgroup.controllers").write_text("cpu memory pids hugetlb\n")
    return table


def _read(groups: list[Path], *names: str) -> str:
    return next((group / name).read_text().strip() for group in groups for name in names if (group / name).exists())


def _connects(host: RunningHost, spec: object) -> bool:
    try:
        host.connect(spec).close()  # type: ignore[arg-type]
    except psycopg.OperationalError:
        return False
    return True
