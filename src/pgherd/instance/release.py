"""Which release runs: HOME/releases/<version>-<hash>, chosen by the link HOME/current."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from pgherd.errors import Incorrect
from pgherd.home import Home

_KEPT = 3


def own_release(home: Home) -> Path | None:
    """The release that this very program runs from, or None in a checkout."""
    prefix = Path(sys.prefix).resolve()
    return prefix if prefix.parent == home.releases.resolve() else None


def choose_release(home: Home) -> Path:
    """Let `current` name the release that we run from; from a checkout the one named before stays.

    Raises Incorrect when none is installed yet.
    """
    release = own_release(home)
    if release is None:
        if not (home.current / "bin/pgherd").exists():
            raise Incorrect("No release is installed under the home directory; run `make up` in the checkout.")
        return home.current.resolve()
    if home.current.resolve() != release:
        aside = home.root / ".current.new"
        aside.unlink(missing_ok=True)
        aside.symlink_to(Path("releases") / release.name)
        aside.rename(home.current)
    return release


def remove_old_releases(home: Home) -> None:
    """Keep the newest few; what runs or is chosen always stays."""
    used = {home.current.resolve(), Path(sys.prefix).resolve()} | _running(home)
    found = sorted((p for p in home.releases.iterdir() if not p.name.startswith(".")), key=lambda p: -p.stat().st_mtime)
    for old in [p for p in found if p.resolve() not in used][_KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def _running(home: Home) -> set[Path]:
    """Releases that a living process has its command line in."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")[:2]
            except OSError:
                continue
            for word in words:
                path = Path(os.fsdecode(word))
                if home.releases in path.parents:
                    found.add(home.releases / path.relative_to(home.releases).parts[0])
    return {p.resolve() for p in found}
