"""Long work of a node in a thread of its own: it ends with the agent and is begun again by the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Making:
    """One piece of work. `cancelled` is looked at between its parts; `step` says what it does, for people."""

    key: str
    step: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None


class Makings:
    """The work of all nodes. `ring` is called with a node's id when its work has ended."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._running: dict[str, Making] = {}

    def ensure(self, node_id: str, key: str, work: Callable[[Making], Any]) -> Making:
        """The node's work of this key, begun if it is not there; work of another key is cancelled and waited for."""
        with self._lock:
            found = self._running.get(node_id)
            if found is not None and (found.key != key or found.cancelled.is_set()):
                found.cancelled.set()
                if not found.ended.is_set():
                    return found
                found = None
            if found is None:
                found = self._running[node_id] = Making(key)
                threading.Thread(target=self._work, args=(node_id, found, work), daemon=True, name="making").start()
            return found

    def take(self, node_id: str, making: Making) -> Any:
        """The result of work that has ended, which is then forgotten. Raises what it raised."""
        with self._lock:
            if self._running.get(node_id) is making:
                del self._running[node_id]
        if making.error is not None:
            raise making.error
        return making.result

    def cancel(self, node_id: str) -> bool:
        """Let no further part of the node's work begin; returns whether none of it goes on."""
        with self._lock:
            found = self._running.get(node_id)
            if found is None:
                return True
            found.cancelled.set()
            if found.ended.is_set():
                del self._running[node_id]
            return found.ended.is_set()

    def work_on(self, node_id: str) -> bool:
        """Whether any of the node's work goes on."""
        with self._lock:
            found = self._running.get(node_id)
            return found is not None and not found.ended.is_set()

    def _work(self, node_id: str, making: Making, work: Callable[[Making], Any]) -> None:
        try:
            making.result = work(making)
        except Exception as error:
            making.error = error
        finally:
            making.ended.set()
            self._ring(node_id)
