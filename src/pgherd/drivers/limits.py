"""Control groups: the memory, the number of processes and the share of the CPUs of a node.

Version 1 or 2, or a machine that has some controllers under each. One group an instance directly under the root of
the hierarchy, and in it one a node. Where nothing can be written, nothing happens and `problem` says why.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgherd.errors import HostFault
from pgherd.spec import NodeSpec

CONTROLLERS = ("memory", "pids", "cpu")
#: Above the plan's memory: a pooler, and what a backend that is ended too late has taken meanwhile.
_HEADROOM = 8  # an eighth
_LEAST_HEADROOM = 64 << 20
#: Percent of the host's memory that one node may take at most, however large its plan: the rest must live.
_MOST_OF_HOST = 85
#: A node's processes beside two per connection: parallel and background workers, the pooler, the archiver.
_PROCESSES = 256
#: All services together against everything else on the machine, in units of one ordinary process or group.
_ALL_SERVICES = 4
_PATIENCE = 5.0  # seconds until a group whose processes were killed can be removed


@dataclass(frozen=True)
class Bounds:
    """Bytes, processes, CPUs; 0: no bound."""

    memory: int
    processes: int
    cpus: int


@dataclass(frozen=True)
class Hierarchy:
    """Where a controller is mounted, and the version of its files."""

    root: Path
    version: int


def bounds(spec: NodeSpec, host_memory: int) -> Bounds:
    """What a node may take."""
    memory = 0
    if spec.memory_bytes:
        headroom = max(_LEAST_HEADROOM, spec.memory_bytes // _HEADROOM)
        memory = min(spec.memory_bytes + headroom, host_memory * _MOST_OF_HOST // 100)
    return Bounds(memory, 2 * spec.max_connections + _PROCESSES, spec.cpus)


def cores(process: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mounts")) -> int:
    """How many CPUs this process may use at once: what its affinity and the quotas of its control groups leave."""
    most = float(len(os.sched_getaffinity(0)))
    for line in process.read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        for mounted in mounts.read_text().splitlines():
            _, place, kind, options, *_ = mounted.split()
            both = {*controllers.split(",")} & {*options.split(",")}
            if (kind == "cgroup2" and not controllers) or (kind == "cgroup" and "cpu" in both):
                below = Path(own.lstrip("/"))
                most = min([most, *(_quota(Path(place) / group) for group in (below, *below.parents))])
    return max(1, int(most))


def _quota(group: Path) -> float:
    """The CPUs that the group's processes may use together; infinite: as many as there are."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        granted = int((group / "cpu.cfs_quota_us").read_text())
        return granted / int((group / "cpu.cfs_period_us").read_text()) if granted > 0 else math.inf
    return math.inf


class Limits:
    """The groups of the instance whose home is `root`. `mounts` is a table of mounts, as /proc/self/mounts is."""

    def __init__(self, root: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
        self.name = f"pgherd-{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:12]}"
        self.hierarchies = dict(_hierarchies(mounts)) if os.geteuid() == 0 else {}
        missing = [name for name in CONTROLLERS if name not in self.hierarchies]
        self.problem = "not root" if os.geteuid() != 0 else f"not writable here: {', '.join(missing)}" * bool(missing)

    def groups(self, node: str) -> list[Path]:
        """The groups that the node's processes join."""
        return list(dict.fromkeys(found.root / self.name / node for found in self.hierarchies.values()))

    def ensure(self, node: str, wished: Bounds) -> None:
        """The node's groups are there with these bounds. What this host does not permit is left out."""
        values = {"memory": wished.memory, "pids": wished.processes, "cpu": wished.cpus}
        for controller, found in self.hierarchies.items():
            parent = found.root / self.name
            with _permitted():
                if found.version == 2:
                    _write(found.root / "cgroup.subtree_control", f"+{controller}")
                parent.mkdir(mode=0o755, exist_ok=True)
                if found.version == 2:
                    _write(parent / "cgroup.subtree_control", f"+{controller}")
                if controller == "cpu":
                    _write_all(parent, _settings("cpu", found.version, _ALL_SERVICES))
                (parent / node).mkdir(mode=0o755, exist_ok=True)
                _write_all(parent / node, _settings(controller, found.version, values[controller]))

    def remove(self, node: str) -> None:
        """The node has no group any more. Raises HostFault when a process in it does not end."""
        deadline = time.monotonic() + _PATIENCE
        for group in self.groups(node):
            while not _removed(group):
                if time.monotonic() > deadline:
                    raise HostFault("A node's control group still has processes.", detail=str(group))
                time.sleep(0.01)
            _removed(group.parent)

    def remove_all(self) -> None:
        """Remove every group of the instance that has no processes."""
        for found in self.hierarchies.values():
            parent = found.root / self.name
            for group in sorted(parent.iterdir()) if parent.is_dir() else ():
                if group.is_dir():
                    _removed(group)
            _removed(parent)

    def holds(self, node: str, pid: int) -> bool:
        """Whether a process is in all of the node's groups."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return False
        wanted = len(self.groups(node))
        return wanted > 0 and sum(line.endswith(f"/{self.name}/{node}") for line in lines) >= wanted


def _settings(controller: str, version: int, value: int) -> dict[str, str]:
    """File and content of one bound; `value` 0: none. Processes get no swap: neighbours would wait for the disk."""
    unlimited = "-1" if version == 1 and controller == "memory" else "max"
    text = str(value) if value else unlimited
    if controller == "memory":
        if version == 1:
            return {"memory.limit_in_bytes": text, "memory.swappiness": "0"}
        return {"memory.max": text, "memory.swap.max": "0"}
    if controller == "pids":
        return {"pids.max": text}
    if version == 1:
        return {"cpu.shares": str(min(262144, 1024 * (value or 1)))}
    return {"cpu.weight": str(min(10000, 100 * (value or 1)))}


def _hierarchies(mounts: Path) -> Iterator[tuple[str, Hierarchy]]:
    """The controllers that can be used, by name."""
    found: dict[str, Hierarchy] = {}
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        root = Path(place)
        if not os.access(root, os.W_OK):
            continue
        names: list[str] = []
        if kind == "cgroup":
            names = options.split(",")
        elif kind == "cgroup2":
            with contextlib.suppress(OSError):
                names = (root / "cgroup.controllers").read_text().split()
        for name in CONTROLLERS:
            if name in names:
                found.setdefault(name, Hierarchy(root, 1 if kind == "cgroup" else 2))
    yield from sorted(found.items())


@contextlib.contextmanager
def _permitted() -> Iterator[None]:
    """What the host forbids is not done; `holds` tells the doctor."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise HostFault("A node's limits cannot be set.", detail=str(error)) from None


def _write_all(group: Path, settings: dict[str, str]) -> None:
    for name, text in settings.items():
        # Not every kernel has swap accounting.
        with contextlib.suppress(FileNotFoundError):
            _write(group / name, text)


def _write(path: Path, text: str) -> None:
    """Write unless it is so already. A bound below what is in use is busy: it is set again after the restart."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.read(descriptor, 4096).decode().strip() != text:
            os.pwrite(descriptor, text.encode(), 0)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    finally:
        os.close(descriptor)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise HostFault("A node's control group cannot be removed.", detail=str(error)) from None
        return False
    return True
