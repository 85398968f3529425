"""The specs that the agent works from while the metadata is away: one file a node, in a directory of root's alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pgherd.agent.records import write_private
from pgherd.spec import NodeSpec, NodeStatus

log = logging.getLogger("pgherd.agent")


class Kept(msgspec.Struct, frozen=True):
    """A node's file. `status`: of a stopped node, which tells nothing of itself any more."""

    spec: NodeSpec
    converged: int = 0
    status: NodeStatus | None = None


class Specs:
    """The files in `directory`; several threads may keep at once."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._lock = directory, threading.Lock()

    def keep(self, spec: NodeSpec, converged: int, status: NodeStatus | None) -> None:
        """Write a node's file anew."""
        if "/" in spec.node_id or spec.node_id.startswith("."):
            return
        stopped = status if status is not None and status.state == "stopped" else None
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            write_private(self._file(spec.node_id), msgspec.json.encode(Kept(spec, converged, stopped)))

    def load(self) -> Iterator[Kept]:
        """Every file that can be read."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Kept)
            except (OSError, msgspec.MsgspecError) as error:
                log.error("A kept spec cannot be read: %s", error)

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        self._file(node_id).unlink(missing_ok=True)

    def _file(self, node_id: str) -> Path:
        return self._directory / f"{node_id}.json"
