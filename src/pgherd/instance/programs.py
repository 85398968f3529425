"""Where PostgreSQL's programs are."""

from __future__ import annotations

import re
from pathlib import Path

from pgherd.errors import Incorrect
from pgherd.settings import Settings


def postgres_directories(settings: Settings) -> dict[str, Path]:
    """Major version -> directory of programs, for every installed PostgreSQL. Raises Incorrect on a wrong setting."""
    if settings.postgres_bindirs:
        found = {}
        for part in settings.postgres_bindirs.split(","):
            major, sign, directory = part.strip().partition("=")
            if not sign or not major.isdigit() or not Path(directory).is_absolute():
                raise Incorrect("Setting postgres_bindirs must be MAJOR=DIR,MAJOR=DIR with absolute directories.")
            found[major] = Path(directory)
    else:
        places = Path("/usr/lib/postgresql").glob("*/bin")
        found = {p.parent.name: p for p in places if re.fullmatch(r"\d+", p.parent.name)}
    return {major: directory for major, directory in found.items() if (directory / "postgres").exists()}


def postgres_directory(settings: Settings, major: str) -> Path:
    """The directory of one major version. Raises Incorrect with what to do."""
    found = postgres_directories(settings)
    if major not in found:
        if not found:
            raise Incorrect(f"PostgreSQL {major} is not installed, nor is another. Run `make up`.")
        raise Incorrect(
            f"PostgreSQL {major} is not installed; installed: {', '.join(sorted(found))}."
            f" Install the package postgresql-{major}, or name its directory in postgres_bindirs."
        )
    return found[major]
