"""What the agent keeps about its nodes, readable by the agent alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pgherd.spec import OriginStatus, TaskResult


class Record(msgspec.Struct):
    """The agent's own note in a node's directory: which admin it has made there (a fingerprint), the result of the last
    task, the id of the task whose creation has begun; and what `features` has done; the last origin that was carried
    out, the one whose data is being put in place, and what came of it."""

    admin: str = ""
    task: TaskResult | None = None
    begun: str = ""
    timescale: bool = False
    audited: int = 0
    done: str = ""
    exchanging: str = ""
    origin: OriginStatus | None = None


def read_record(directory: Path) -> Record:
    """The agent's note in a node's directory."""
    try:
        return msgspec.json.decode((directory / "node.json").read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return Record()


def note(directory: Path, record: Record) -> None:
    """Write the note in a node's directory."""
    write_private(directory / "node.json", msgspec.json.encode(record))


def write_private(path: Path, content: bytes) -> None:
    """Replace a file of the agent's own, readable by the agent alone, at once."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    aside.touch(mode=0o600)
    aside.write_bytes(content)
    aside.rename(path)
