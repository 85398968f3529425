"""`pgherd extensions`: what services may create, and which hosts have it."""

from __future__ import annotations

from typing import Annotated

import typer

from pgherd.cli import screen
from pgherd.cli.client import connect
from pgherd.cli.screen import Form


def list_extensions(
    missing: Annotated[bool, typer.Option("--missing", help="Only those that a host lacks.")] = False,
    form: Form = None,
) -> None:
    """List the extensions that services may create, with their versions on each host (see docs/extensions.md)."""
    found = [
        {"extension": name, "postgresql": major, "host": one["name"], "version": version}
        for one in connect().own("GET", "host")["hosts"]
        for major, names in sorted((one.get("extensions") or {}).items())
        for name, version in sorted(names.items())
        if not (missing and version)
    ]
    rows = [(one["extension"], one["postgresql"], one["host"], one["version"] or "not installed") for one in found]
    screen.show_rows(found, ("EXTENSION", "POSTGRESQL", "HOST", "VERSION"), rows, empty="None.")
