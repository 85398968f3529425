"""Batches of PostgreSQL's minor releases."""

from __future__ import annotations

import pytest

from pgherd.model.minors import BATCHES, WHY, lacking, may_upgrade, newest


@pytest.mark.parametrize(
    ("version", "months"),
    [
        ("15.17", ["2026-05", "2026-08", "2026-11"]), ("15.18", ["2026-08", "2026-11"]), ("15.19", ["2026-11"]),
        ("15.20", []), ("15.21", []), ("17.11", ["2026-11"]), ("17.12", []), ("18.6", ["2026-11"]),
        ("18.5", ["2026-08", "2026-11"]), ("13.23", ["all"]), ("19.1", []),
    ],
)  # fmt: skip
def test_what_a_minor_lacks(version: str, months: list[str]) -> None:
    assert lacking(version) == months


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        ("15.20", "17.11", False), ("15.20", "18.6", False), ("17.12", "18.6", False), ("15.20", "17.12", True),
        ("15.18", "17.11", True), ("15.18", "18.6", True), ("15.18", "17.12", True), ("15.19", "19.1", True),
        ("13.23", "17.12", True),
    ],
)  # fmt: skip
def test_an_upgrade_leads_into_the_same_or_a_newer_batch(old: str, new: str, may: bool) -> None:
    """As measured with real clusters for those of 15, 17 and 18."""
    assert may_upgrade(old, new) is may


def test_the_data_is_in_order() -> None:
    months = [month for month, _ in BATCHES]
    assert months == sorted(months) and set(WHY) == set(months)
    for major in {major for _, minors in BATCHES for major in minors}:
        minors = [found[major] for _, found in BATCHES if major in found]
        assert minors == sorted(set(minors)) and newest(major) == f"{major}.{minors[-1]}"
    with pytest.raises(ValueError, match="not a version"):
        lacking("devel")
