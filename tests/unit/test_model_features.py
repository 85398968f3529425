"""What a wish asks beyond plain PostgreSQL: what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.errors import Incorrect
from pgherd.model import features
from pgherd.model.service import Change, Wish


def wish(**fields: Any) -> Wish:
    return Wish.draft(Change(plan="hobbyist-2", variant="timescale", **fields), "18")


def group_of(field: str, name: str, value: int) -> dict[str, Any]:
    return {field.replace("-", "_"): {name: value}}


@pytest.mark.parametrize(("field", "name"), features.BOUNDS)
def test_what_the_library_would_refuse(field: str, name: str) -> None:
    least, most = features.BOUNDS[field, name]
    for value in (least, most):
        features.check(wish(**group_of(field, name, value)))
    for value in (least - 1, most + 1):
        with pytest.raises(Incorrect) as caught:
            features.check(wish(**group_of(field, name, value)))
        assert caught.value.message == f"{field}.{name}: must be an integer from {least} to {most}"
