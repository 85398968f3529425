"""What a failed test leaves on an instance that others use too fails no other one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.durability.kills import clear


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest) -> Iterator[None]:
    used = [request.getfixturevalue(name) for name in ("fragile", "keeping") if name in request.fixturenames]
    yield
    for instance in used:
        clear(instance)
