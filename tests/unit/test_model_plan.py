"""Plans and the memory that follows from them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.errors import Incorrect
from pgherd.model.plan import GIB, MIB, PLANS, memory, plan_named


def test_plans_of_the_hosted_service() -> None:
    sizes = (4, 8, 16, 32, 64, 128, 225)
    assert set(PLANS) == {"hobbyist-2"} | {f"{tier}-{n}" for tier in ("startup", "business", "premium") for n in sizes}
    assert [PLANS[f"startup-{n}"].max_connections for n in sizes] == [100, 200, 400, 800, 1000, 1000, 1000]
    assert [PLANS[name].nodes for name in ("hobbyist-2", "startup-4", "business-4", "premium-4")] == [1, 1, 2, 3]
    assert [PLANS[f"{tier}-4"].backups.count for tier in ("startup", "business", "premium")] == [3, 14, 30]
    hobbyist = PLANS["hobbyist-2"]
    assert (hobbyist.cpus, hobbyist.memory_bytes, hobbyist.disk_bytes) == (2, 2 * GIB, 8 * GIB)
    assert (hobbyist.max_connections, hobbyist.backups.count) == (25, 1)


def test_larger_plan_is_larger_in_all() -> None:
    for tier in ("startup", "business", "premium"):
        plans = [plan for plan in PLANS.values() if plan.name.startswith(tier)]
        for small, large in itertools.pairwise(plans):
            assert small.memory_gib < large.memory_gib
            assert small.disk_gib < large.disk_gib
            assert small.cpus <= large.cpus
            assert small.max_connections <= large.max_connections


def test_unknown_plan_lists_the_plans() -> None:
    with pytest.raises(Incorrect, match="hobbyist-2, startup-4"):
        plan_named("hobbyist-1")


def test_memory_of_a_host_with_room() -> None:
    sizes = memory(PLANS["startup-4"], 512 * GIB, 100)
    usable = 4096 - 350
    assert sizes.shared_buffers == usable * 20 // 100
    assert sizes.effective_cache_size == usable * 3 // 4
    assert sizes.work_mem == 1 + 3  # 1 MB + 0.075 % of 4096 MB
    assert memory(PLANS["startup-225"], 5120 * GIB, 100).work_mem == 32


def test_a_request_wins_over_the_computed() -> None:
    sizes = memory(PLANS["startup-4"], 512 * GIB, 100, 77, 60)
    assert (sizes.work_mem, sizes.shared_buffers) == (77, (4096 - 350) * 60 // 100)


@given(
    st.sampled_from(list(PLANS.values())),
    st.integers(256 * MIB, 2048 * GIB),
    st.integers(1, 100),
    st.none() | st.integers(20, 60),
)
def test_memory_fits_plan_and_share(plan, host, cap, percentage) -> None:  # type: ignore[no-untyped-def]
    sizes = memory(plan, host, cap, None, percentage)
    limit = max(32, min(plan.memory_gib * 1024 - 350, host * cap // 100 // MIB))
    assert 8 <= sizes.shared_buffers <= limit * 60 // 100 + 8
    assert sizes.shared_buffers < sizes.effective_cache_size <= limit
    assert 1 <= sizes.work_mem <= 32
    assert 16 <= sizes.maintenance_work_mem <= 1024
