"""One log out of several: the messages of a service's units and nodes in the order of their times, page by page.

A page lies between two places. A place is one position for every unit of every node, so that nothing is lost or seen
twice whatever the units write meanwhile; times only decide in which order a page shows its messages.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pgherd.errors import Incorrect
from pgherd.telemetry import LogEntry, LogPosition, LogUnit

#: Node -> unit -> position.
Place = dict[str, dict[str, LogPosition]]

_MOST_OFFSET = 8192  # characters
_NODE = re.compile(r"[a-z][a-z0-9-]{0,79}")
_UNIT = re.compile(r"[a-z]{1,16}")
_FILE = re.compile(r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9})?", re.ASCII)  # see LogPosition


@dataclass(frozen=True)
class Page:
    """Messages with node and unit, and the places around them: `near` where reading began, `far` where it ended."""

    entries: list[tuple[str, str, LogEntry]]
    near: Place
    far: Place


def write_offset(place: Place) -> str:
    """A place as the text that clients hand back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def read_offset(text: str) -> Place:
    """The place in a text. Raises Incorrect for what `write_offset` did not make."""
    try:
        if len(text) > _MOST_OFFSET:
            raise ValueError
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=Place)
        if not all(_NODE.fullmatch(node) and all(map(_is_position, units.items())) for node, units in place.items()):
            raise ValueError
        return place
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        raise Incorrect("offset: must be an offset or first-log-offset of an earlier answer.") from None


def _is_position(named: tuple[str, LogPosition]) -> bool:
    """Whether a unit and a position can be real: whatever the text says goes to the metadata and to hosts."""
    unit, position = named
    return bool(_UNIT.fullmatch(unit) and _FILE.fullmatch(position.file)) and 0 <= position.offset < 1 << 50


def merge(answers: Mapping[str, Sequence[LogUnit]], limit: int, *, ascending: bool) -> Page:
    """The next page: of every unit's messages, which are in their own order, the `limit` nearest by time.

    Where a unit has more than it told, nothing that may come after that is shown yet.
    """
    units = [(node, unit) for node, found in sorted(answers.items()) for unit in found]
    near: Place = {node: {} for node in answers}
    for node, unit in units:
        near[node][unit.unit] = unit.position
    far = {node: dict(positions) for node, positions in near.items()}
    left = [list(reversed(unit.entries)) for _, unit in units]
    entries: list[tuple[str, str, LogEntry]] = []
    while len(entries) < limit and not any(unit.more and not rest for (_, unit), rest in zip(units, left, strict=True)):
        heads = [(rest[-1].time, index) for index, rest in enumerate(left) if rest]
        if not heads:
            break
        _, index = min(heads) if ascending else max(heads)
        (node, unit), entry = units[index], left[index].pop()
        entries.append((node, unit.unit, entry))
        far[node][unit.unit] = entry.end if ascending else entry.start
    return Page(entries, near, far)
