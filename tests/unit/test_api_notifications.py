"""What a service's owner is told of its disk, and of which disk the percents are."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.api.notifications import notifications
from pgherd.model.plan import GIB, PLANS

PLAN = PLANS["startup-4"]  # 80 GiB


def told(**status: Any) -> list[dict[str, Any]]:
    row = {"stopped_at": None, "phase": "running", "nodes": [{"status": status}], "verification": None}
    return notifications(row, PLAN)


@pytest.mark.parametrize(
    ("capacity", "limit", "by", "amount", "way_out"),
    [
        (0, 80 * GIB, "plan", "of the plan's 80 GiB of disk are used.", "a larger plan"),
        (160 * GIB, 80 * GIB, "plan", "of the plan's 80 GiB of disk are used.", "a larger plan"),
        (
            8 * GIB,
            8 * GIB,
            "file-system",
            "of the 8.0 GiB of the service's own file system are used.",
            "a larger file system",
        ),
    ],
)
def test_notice_text_and_limit_are_of_one_disk(capacity: int, limit: int, by: str, amount: str, way_out: str) -> None:
    assert told(disk_used=limit * 89 // 100, disk_capacity=capacity) == []
    (notice,) = told(disk_used=limit * 91 // 100, disk_capacity=capacity)
    assert (notice["level"], notice["metadata"]["kind"]) == ("notice", "disk-nearly-full")
    assert amount in notice["message"] and notice["message"].endswith(f"take {way_out}.")
    assert (notice["metadata"]["disk-size"], notice["metadata"]["limited-by"]) == (limit, by)
    (warning,) = told(disk_used=limit * 98 // 100, disk_capacity=capacity, read_only="plan")
    assert (warning["level"], warning["metadata"]["kind"]) == ("warning", "disk-full")
    assert amount in warning["message"] and f"{way_out} ends it at once" in warning["message"]
