"""An agent as a process of its own, fed from a directory: `python -m tests.real.agent_process HOME`."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path

import msgspec

from pgherd import failpoints
from pgherd.agent.agent import Agent
from pgherd.agent.link import Bell
from pgherd.settings import Settings
from pgherd.spec import HostFacts, NodeSpec, NodeStatus, UnknownNode
from pgherd.telemetry import LogQuestion, LogUnit, Sample


class DirectoryLink:
    """Specs from HOME/wish/*.json, statuses to HOME/said/*.json."""

    def __init__(self, home: Path) -> None:
        self._home, self._bell, self._seen, self._woken = home, Bell(), 0, False

    def register(self, public_key: str, facts: HostFacts) -> None:
        (self._home / "public-key").write_text(public_key)

    def specs(self) -> list[NodeSpec]:
        return [msgspec.json.decode(p.read_bytes(), type=NodeSpec) for p in (self._home / "wish").glob("*.json")]

    def report(self, status: NodeStatus) -> None:
        aside = self._home / "said" / ".new"
        aside.write_bytes(msgspec.json.encode(status))
        aside.rename(self._home / "said" / f"{status.node_id}.json")
        if status.state == "absent":
            (self._home / "wish" / f"{status.node_id}.json").unlink(missing_ok=True)

    def recovery_key(self) -> str:
        return ""

    def unknown(self, nodes: list[UnknownNode], present: list[str]) -> None:
        pass

    def samples(self, samples: list[Sample]) -> None:
        pass

    def questions(self) -> list[LogQuestion]:
        return []

    def answer(self, question: LogQuestion, units: list[LogUnit]) -> None:
        raise AssertionError("nothing was asked")

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            now = (self._home / "wish").stat().st_mtime_ns
            if now != self._seen:
                self._seen = now
                return True
            self._bell.wait(0.02)
            if self._woken:
                self._woken = False
                break
        return False

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()


def main() -> None:
    home = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO)
    failpoints.name_process("agent")
    agent = Agent(Settings(home=str(home), warm_pool=1, uid_range="211000-211999"), DirectoryLink(home))
    signal.signal(signal.SIGTERM, lambda *_: agent.stop())
    agent.run()


if __name__ == "__main__":
    main()
