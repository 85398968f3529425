"""The plans, and the PostgreSQL memory settings that follow from one.

Names, node counts, memory, the size of hobbyist-2, connection limits and backup counts are the hosted
service's. Its CPU counts and disks of the other plans are not published; here a node has a CPU per 4 GiB
of memory (at least two), and 20 GiB of disk per GiB of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgherd.errors import Incorrect
from pgherd.spec import Memory

MIB = 1 << 20
GIB = 1 << 30
#: MiB of a node's memory that PostgreSQL's sizes leave to everything else.
RESERVED_MIB = 350
#: Percent of usable memory for shared_buffers when the request names none.
SHARED_BUFFERS_PERCENT = 20


@dataclass(frozen=True, slots=True)
class Backups:
    """How a plan's services are backed up: one full backup each `interval` hours, `count` of them are kept."""

    interval: int
    count: int
    mode: str = "pitr"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a plan promises; CPUs, memory and disk are those of one node."""

    name: str
    nodes: int
    cpus: int
    memory_gib: int
    disk_gib: int
    max_connections: int
    backups: Backups

    @property
    def offered(self) -> bool:
        """Whether services of this plan can be created here as yet: more nodes than one come with high availability."""
        return self.nodes == 1

    @property
    def memory_bytes(self) -> int:
        """Memory of one node in bytes."""
        return self.memory_gib * GIB

    @property
    def disk_bytes(self) -> int:
        """Disk of one node in bytes."""
        return self.disk_gib * GIB


#: Memory in GiB -> CPUs, disk in GiB, connections.
_SIZES = {
    4: (2, 80, 100),
    8: (2, 160, 200),
    16: (4, 320, 400),
    32: (8, 640, 800),
    64: (16, 1280, 1000),
    128: (32, 2560, 1000),
    225: (56, 4500, 1000),
}
#: Tier -> nodes, backups kept.
_TIERS = {"startup": (1, 3), "business": (2, 14), "premium": (3, 30)}


def _plans() -> list[Plan]:
    plans = [Plan("hobbyist-2", 1, 2, 2, 8, 25, Backups(24, 1))]
    for tier, (nodes, backups) in _TIERS.items():
        for memory_gib, (cpus, disk, connections) in _SIZES.items():
            name = f"{tier}-{memory_gib}"
            plans.append(Plan(name, nodes, cpus, memory_gib, disk, connections, Backups(24, backups)))
    return plans


#: Every plan by name, smallest first within a tier.
PLANS: Mapping[str, Plan] = {plan.name: plan for plan in _plans()}


def plan_named(name: str) -> Plan:
    """The plan. Raises Incorrect with the names of those that can be had."""
    if name not in PLANS:
        raise Incorrect(f"plan: must be one of {', '.join(plan.name for plan in PLANS.values() if plan.offered)}")
    return PLANS[name]


def memory(
    plan: Plan,
    host_memory_bytes: int,
    cap_percent: int,
    work_mem: int | None = None,
    shared_buffers_percentage: int | None = None,
) -> Memory:
    """PostgreSQL's sizes for one node of a plan on a host.

    The plan's memory less RESERVED_MIB is usable, but at most `cap_percent` of the host's: a plan is a ceiling, so
    that many idle services fit on a small machine. `work_mem` in MiB as the request has it, which is taken as it
    is; otherwise 1 MiB and 0.075 % of the memory, at most 32 MiB.
    """
    share = host_memory_bytes * cap_percent // 100 // MIB
    usable = max(32, min(plan.memory_gib * 1024 - RESERVED_MIB, share))
    whole = min(plan.memory_gib * 1024, share)
    return Memory(
        shared_buffers=max(8, usable * (shared_buffers_percentage or SHARED_BUFFERS_PERCENT) // 100),
        effective_cache_size=max(16, usable * 3 // 4),
        maintenance_work_mem=min(1024, max(16, usable // 16)),
        work_mem=work_mem or min(32, 1 + int(whole * 0.00075)),
    )
