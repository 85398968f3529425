"""`pgherd` alone: where to begin."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import typer

from pgherd.cli import credentials, screen
from pgherd.cli.outcome import CliError

_NONE = """pgherd: managed PostgreSQL that you run yourself, behind the Exoscale DBaaS API.

There is no instance here yet. Start one in the directory of the source:
  make up

Or use one that runs elsewhere: set EXOSCALE_API_ENDPOINT, EXOSCALE_API_KEY and EXOSCALE_API_SECRET.
All commands: pgherd --help"""

_STOPPED = """The instance at {endpoint} does not answer. Start it, or see what is wrong:
  pgherd up
  pgherd doctor

All commands: pgherd --help"""

_RUNNING = """The API runs at {endpoint} (credentials from {origin}).

  pgherd service create demo --plan hobbyist-2   a PostgreSQL service
  pgherd service psql demo                       a session on it
  pgherd service list                            what there is
  eval "$(pgherd env)"                           for exo and the SDKs
  pgherd terraform-front                         for Terraform

All commands: pgherd --help"""


def welcome() -> None:
    """Print what to do next here."""
    try:
        found = credentials.find()
    except CliError as error:
        if credentials.VARIABLES[0] in os.environ or "may not read" in error.message or "damaged" in error.message:
            raise
        typer.echo(_NONE if not credentials.roots_instance(os.environ) else f"{error.message}\n{error.hint}")
        return
    text = _RUNNING if listens(found.endpoint) else _STOPPED
    typer.echo(text.format(endpoint=screen.visible(found.endpoint), origin=screen.visible(found.origin)))


def listens(endpoint: str) -> bool:
    """Whether something accepts connections at a URL, within half a second."""
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=0.5).close()
    except OSError:
        return False
    return True
