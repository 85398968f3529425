"""What the agent keeps about its nodes, readable by the agent alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pgherd.spec import OriginStatus, TaskResult


class Record(msgspec.Struct):
    """The agent's own note in a node's directory: which admin it has made there (a fingerprint), the result of the last
    task, the id of the task whose creation has begun; and what `features` has done.

    `done`: the last origin that was carried out, and `origin` what came of it. `exchanging`: the one whose data is put
    in place from the directory `taken`, and `coming` what will have come of it. `unclean`: the one whose making or
    exchange may have left something in `data/` that nobody wants. `leaving`: the data is being deleted, after all of it
    went into the repository; what is still there is not whole.
    """

    admin: str = ""
    task: TaskResult | None = None
    begun: str = ""
    timescale: bool = False
    audited: int = 0
    done: str = ""
    exchanging: str = ""
    taken: str = ""
    coming: OriginStatus | None = None
    origin: OriginStatus | None = None
    unclean: str = ""
    leaving: bool = False

    @property
    def kept(self) -> str:
        """The origin from before which data is kept, empty: none."""
        return self.origin.kept if self.origin else ""


def read_record(directory: Path) -> Record:
    """The agent's note in a node's directory."""
    try:
        record = msgspec.json.decode((directory / "node.json").read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return Record()
    # What a version wrote that knew less:
    if record.origin is not None and record.origin.aside and not record.origin.kept:
        record.origin = msgspec.structs.replace(record.origin, kept=record.done)
    if record.exchanging and not record.taken:
        record.taken, record.coming = f"made-{record.exchanging}", record.origin
    return record


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
