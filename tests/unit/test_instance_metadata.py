"""A restored data directory takes the place of the metadata's, wherever it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.home import Home
from pgherd.instance.metadata import RESTORING, SWAPPING, finish_swap


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_an_interrupted_swap_is_finished(tmp_path: Path, done: int) -> None:
    home = Home(tmp_path)
    data, restored, kept = home.metadata / "data", home.metadata / RESTORING, home.metadata / "before-1"
    for directory in (data, restored):
        directory.mkdir(parents=True)
        (directory / "name").write_text(directory.name)
    note = home.metadata / SWAPPING
    if done:
        note.write_text("before-1\n")
    if done > 1:
        data.rename(kept)
    if done > 2:
        restored.rename(data)
    for _ in range(2):
        finish_swap(home)
    assert not note.exists()
    assert (data / "name").read_text() == (RESTORING if done else "data")
    assert not done or (kept / "name").read_text() == "data"
