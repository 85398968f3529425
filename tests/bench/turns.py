"""Two ways of doing the same, measured in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable


def in_turns(ours: Callable[[], float], hand: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The mean of what each measures in so many rounds; they take turns at being first."""
    ways = ours, hand
    found: tuple[list[float], list[float]] = [], []
    for number in range(rounds):
        for way in (1, 0) if number % 2 else (0, 1):
            found[way].append(ways[way]())
    return statistics.mean(found[0]), statistics.mean(found[1])
