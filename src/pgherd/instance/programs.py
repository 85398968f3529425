"""Where PostgreSQL's programs are."""

from __future__ import annotations

from pathlib import Path

from pgherd.drivers import postgres
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
        found = postgres.installed()
    return {major: directory for major, directory in found.items() if (directory / "postgres").exists()}


def postgres_directory(settings: Settings, major: str) -> Path:
    """The directory of one major version. Raises Incorrect with what to do."""
    found = postgres_directories(settings)
    if major not in found:
        if not found:
            raise Incorrect(f"PostgreSQL {major} is not installed, nor is another. Run `make up`.")
        raise Incorrect(
            f"PostgreSQL {major} is not installed; installed: {', '.join(sorted(found))}."
            f" Run `sh install/postgresql.sh {major}` in the checkout, or name its directory in postgres_bindirs."
        )
    return found[major]
