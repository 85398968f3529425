"""Any process may die at any place of any operation; of a create and a restore `make test` shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.durability.kills import OPERATIONS, clear, kill_at_every_place, rounds
from tests.plugins.instance import Instance


@pytest.fixture(autouse=True)
def _alone(fragile: Instance) -> Iterator[None]:
    yield
    clear(fragile)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "process"), rounds(kind for kind in OPERATIONS if kind not in ("create", "restore")))
def test_killed_at_every_place(fragile: Instance, kind: str, process: str) -> None:
    kill_at_every_place(fragile, kind, process)
