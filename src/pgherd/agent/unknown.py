"""Nodes that the metadata does not know: kept as they are and reported; and nodes that were deleted here, remembered.

Metadata that was restored from an older copy knows nothing of services made since, and still knows those deleted since.
The first are an operator's to adopt or forget; of the second no new, empty cluster may be made.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from pgherd import sealing
from pgherd.agent.link import Link
from pgherd.errors import PgherdError
from pgherd.spec import NodeSpec, NodeStatus, Recovered, UnknownNode

log = logging.getLogger("pgherd.agent")

_AGAIN_EVERY = 30.0  # seconds between reports that say the same
_SELDOM = 600.0  # the same while there is nothing to say: the metadata may have been exchanged
_REMEMBER = 30 * 86400.0  # seconds; older metadata is restored by nobody


class Node(Protocol):
    """What is reported of a node."""

    spec: NodeSpec
    status: NodeStatus | None


class Unknown:
    """What the control plane was told of unknown nodes; `private` is the host's key."""

    def __init__(self, private: bytes) -> None:
        self._private = private
        self._sealed: dict[str, tuple[NodeSpec, str, str]] = {}
        self._told: set[tuple[str, int, str]] | None = None
        self._leaving: set[str] = set()
        self._again = 0.0

    def tell(self, link: Link, nodes: Mapping[str, Node], known: set[str]) -> None:
        """Report the nodes that are not `known`, when they changed or some time has passed. Raises Unavailable."""
        unknown = [n for i, n in nodes.items() if i not in known and n.spec.desired != "absent"]
        marks: set[tuple[str, int, str]] = {
            (n.spec.node_id, n.spec.generation, n.status.state if n.status else "") for n in unknown
        }
        # One that an operator forgot is known as long as its end was not told.
        self._leaving |= {i for i, n in nodes.items() if n.spec.desired == "absent"} | {n.spec.node_id for n in unknown}
        gone = self._leaving - nodes.keys()
        if marks == self._told and not gone and time.monotonic() < self._again:
            return
        before = set(self._sealed)
        public = link.recovery_key() if unknown else ""
        link.unknown([self._shown(node, public) for node in unknown], list(nodes))
        if self._sealed.keys() - before:
            log.warning("%d nodes are here that the metadata does not know; they are left as they are", len(unknown))
        self._told, self._leaving = marks, self._leaving - gone
        self._again = time.monotonic() + (_AGAIN_EVERY if unknown else _SELDOM)
        self._sealed = {node.spec.node_id: self._sealed[node.spec.node_id] for node in unknown}

    def _shown(self, node: Node, public: str) -> UnknownNode:
        spec = node.spec
        kept = self._sealed.get(spec.node_id)
        if kept is None or kept[:2] != (spec, public):
            kept = self._sealed[spec.node_id] = (spec, public, self._seal(spec, public))
        return UnknownNode(spec, kept[2], node.status)

    def _seal(self, spec: NodeSpec, public: str) -> str:
        if not public:
            return ""
        texts = [spec.admin.verifier, spec.tls.key, spec.repository.cipher if spec.repository else ""]
        try:
            found = Recovered(*(sealing.unseal(self._private, text) if text else "" for text in texts))
        except PgherdError as error:
            log.error("node %s: its secrets cannot be recovered: %s", spec.node_id, error)
            return ""
        return sealing.seal(public, msgspec.json.encode(found).decode())


class Deleted:
    """The ids of nodes that were deleted on this host, one empty file each in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, node_id: str) -> None:
        """The node was deleted, or is about to be; nothing happens when it is noted."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._directory / node_id).touch(mode=0o600)

    def holds(self, node_id: str) -> bool:
        """Whether the node was deleted here."""
        return (self._directory / node_id).exists()

    def forget_old(self) -> None:
        """Drop what was deleted long ago."""
        for path in self._directory.glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _REMEMBER:
                    path.unlink()
