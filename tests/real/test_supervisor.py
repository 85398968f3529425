"""What s6 is told: a stop that is not obeyed ends in SIGKILL, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd.drivers.supervisor import Service, Supervisor
from tests.plugins.host import until

DEAF = ["/bin/sh", "-c", "trap '' INT TERM; while :; do sleep 0.2; done"]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Supervisor]:
    """A scanner of its own with one service, that does not heed its signals and is killed after a second and a half."""
    for part in ("s6", "log"):
        (tmp_path / part).mkdir()
    made = Supervisor(tmp_path / "s6", tmp_path / "log", None)
    try:
        made.ensure_scanner()
        made.write("deaf", Service(DEAF, kill_after_ms=1500, down_signal="SIGINT"))
        made.up("deaf")
        until(lambda: made.lives("deaf"), 10, lambda: "it lives")
        yield made
    finally:
        made.stop_scanner(wait=20)


def pid(tree: Supervisor, tmp_path: Path) -> int:
    shown = subprocess.run(["s6-svstat", "-o", "pid", str(tmp_path / "s6/deaf")], capture_output=True, check=True)
    return int(shown.stdout)


@pytest.mark.parametrize("how", ["down", "restart", "stop_scanner"])
def test_what_does_not_stop_is_killed(tree: Supervisor, tmp_path: Path, how: str) -> None:
    before, begin = pid(tree, tmp_path), time.monotonic()
    if how == "stop_scanner":
        tree.stop_scanner(wait=20)
    else:
        getattr(tree, how)("deaf", 20)
    assert 1.4 < time.monotonic() - begin < 10 and not Path(f"/proc/{before}").exists()
    until(lambda: tree.lives("deaf") == (how == "restart"), 10, lambda: "it lives again only when it is to")


def test_what_does_not_stop_is_killed_though_its_supervisor_dies_meanwhile(tree: Supervisor, tmp_path: Path) -> None:
    before = pid(tree, tmp_path)
    supervisor = int(Path(f"/proc/{before}/stat").read_text().rpartition(")")[2].split()[1])
    stopping = threading.Thread(target=tree.down, args=("deaf", 20))
    stopping.start()
    until(lambda: not tree._wants_up(tmp_path / "s6/deaf"), 10, lambda: "it is told")
    os.kill(supervisor, signal.SIGKILL)
    stopping.join(30)
    assert not stopping.is_alive() and not tree.lives("deaf")
    until(lambda: not Path(f"/proc/{before}").exists(), 2, lambda: "its first copy is gone, and init knows")
