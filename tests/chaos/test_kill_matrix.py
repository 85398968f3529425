"""Any process may die at any place of any operation; of a create and a restore `make test` shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.durability.kills import KEEPING, OPERATIONS, kill_at_every_place, rounds
from tests.plugins.instance import Instance, running_instance


@pytest.fixture(scope="module")
def keeping() -> Iterator[Instance]:
    """The same, but deleted services can come back."""
    with running_instance(failpoints=True, keep_deleted_days="7") as made:
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "process"), rounds(kind for kind in OPERATIONS if kind not in ("create", "restore")))
def test_killed_at_every_place(fragile: Instance, kind: str, process: str) -> None:
    kill_at_every_place(fragile, kind, process)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "process"), rounds(KEEPING))
def test_killed_at_every_place_where_services_are_kept(keeping: Instance, kind: str, process: str) -> None:
    kill_at_every_place(keeping, kind, process)
