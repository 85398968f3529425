"""What a measurement must hold. A run that misses something still writes its report, and then fails."""

from __future__ import annotations

missed: list[str] = []


def at_most(what: str, value: float, limit: float) -> None:
    """Note a value above its limit."""
    if value > limit:
        missed.append(f"{what}: {value:.3f}, at most {limit} is allowed.")


def at_least(what: str, value: float, limit: float) -> None:
    """Note a value below its limit."""
    if value < limit:
        missed.append(f"{what}: {value:.3f}, at least {limit} is asked for.")
