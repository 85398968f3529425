"""Where a service's data came from, and which timeline was the service's when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec


class Origin(msgspec.Struct, frozen=True):
    """What a service's data was made from last, where that was no empty cluster. `id` is the operation's.

    `service`: whose data; its own for `restore` (to a time, in place), `undo` (of that) and `return` (after a delete).
    `target`: RFC 3339 in UTC, empty: as late as possible. `timeline`: the one that `target` lies on, 0: the newest.
    """

    id: str
    kind: Literal["fork", "restore", "undo", "return"]
    service: str
    target: str = ""
    timeline: int = 0


class Branch(msgspec.Struct, frozen=True):
    """From `at` on the service's history was on `timeline`, before on `left`."""

    at: datetime
    timeline: int
    left: int


def timeline_at(branches: Sequence[Branch], moment: datetime) -> int:
    """The timeline that was the service's at that moment, 0: there has been one; `branches` in the order of time."""
    past = [branch for branch in branches if branch.at <= moment]
    if past:
        return past[-1].timeline
    return branches[0].left if branches else 0
