"""Minor releases of PostgreSQL with security fixes: which batch one is of, and what it lacks. Pure data.

All majors get theirs on one day, as a batch. `pg_upgrade` from a newer batch into an older one may fail: 15.20 writes
attributes of columns that 17.11 and 18.6 do not know.
"""

from __future__ import annotations

import re

#: The month of each batch, oldest first, and its minor of each major, as far as it is known.
BATCHES: tuple[tuple[str, dict[int, int]], ...] = (
    ("2026-05", {14: 23, 15: 18, 16: 14, 17: 10, 18: 4}),
    ("2026-08", {14: 24, 15: 19, 16: 15, 17: 11, 18: 6}),
    ("2026-11", {15: 20, 17: 12}),
)
#: The last minor of majors that get none any more.
ENDED = {13: 23}
#: What weighs most in a batch for those who serve tenants.
WHY = {
    "2026-05": "code execution by SQL users (CVE-2026-6473, -6637)",
    "2026-08": "code execution by SQL and replication users (CVE-2026-14680, -6471)",
    "2026-11": "some forty vulnerabilities",
}


def batch(version: str) -> int | None:
    """The number of the newest batch that `version` ("15.18") contains; -1: older than all, None: not known."""
    major, minor = _numbers(version)
    known = [number for number, (_, minors) in enumerate(BATCHES) if major in minors]
    if not known:
        return None
    return max((number for number in known if BATCHES[number][1][major] <= minor), default=-1)


def lacking(version: str) -> list[str]:
    """The months of the batches that `version` does not contain, oldest first; a major that has ended lacks "all"."""
    major, _ = _numbers(version)
    if major in ENDED:
        return ["all"]
    has = batch(version)
    return [] if has is None else [month for month, _ in BATCHES[has + 1 :]]


def newest(major: int) -> str:
    """The newest minor of a major that is known here, such as "15.20"; empty: none is."""
    return next((f"{major}.{minors[major]}" for _, minors in reversed(BATCHES) if major in minors), "")


def may_upgrade(old: str, new: str) -> bool:
    """Whether `pg_upgrade` from `old` to `new` is one into the same or a newer batch; what is not known passes."""
    source, target = batch(old), batch(new)
    return source is None or target is None or source <= target


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor. Raises ValueError."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found:
        raise ValueError(f"not a version of PostgreSQL: {version[:20]!r}")
    return int(found[1]), int(found[2])
