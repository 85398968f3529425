"""One result of `pgherd doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was seen, and what to do about it (empty when nothing)."""

    level: Level
    what: str
    seen: str
    todo: str = ""
