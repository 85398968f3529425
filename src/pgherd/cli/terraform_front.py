"""`pgherd terraform-front`: let Terraform's provider, which calls the hosted service's names alone, reach this API."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Annotated

import typer

from pgherd.cli import credentials, screen
from pgherd.cli.outcome import CliError, Exit

if TYPE_CHECKING:
    from pgherd.cli.credentials import Credentials
    from pgherd.front.place import Place
    from pgherd.front.proxy import Front

_LISTEN = "127.0.0.1:8451"

_READY = """Calls to https://api-{zone}.exoscale.com reach {url} while this runs.
In the shell where you use Terraform:
  eval "$(pgherd env --terraform)"
Ctrl-C ends it."""


def run(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="Run this with everything set, as in -- terraform apply."),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="Loopback address and port of the front.", show_default=_LISTEN)
    ] = "",
) -> None:
    """Let Terraform reach this API: a local proxy for the names that its provider calls.

    Alone it runs until Ctrl-C, and `eval "$(pgherd env --terraform)"` sets other shells up. With a command it runs
    that, everything set, and ends with its exit code. docs/terraform.md tells what it does and what it does not.
    """
    import asyncio

    from pgherd.front.place import Place
    from pgherd.front.proxy import Front, Target

    host, port = _address(listen or ("127.0.0.1:0" if command else _LISTEN))
    known = _credentials()
    place = Place(os.environ)
    try:
        ca = place.ensure()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        hint = "Let XDG_CONFIG_HOME name a directory of yours."
        raise CliError(Exit.FAILED, f"Cannot keep the front's certificates in {place.path}: {why}.", hint) from None
    target = Target(known.url, _zone(known), str(place.bundle))
    front = Front(target, ca, place.token(), dict(os.environ), screen.note)
    work = _command(front, place, known, command, host, port) if command else _foreground(front, place, host, port)
    raise typer.Exit(asyncio.run(work))


async def _foreground(front: Front, place: Place, host: str, port: int) -> int:
    """Serve until SIGINT or SIGTERM."""
    import asyncio
    import signal

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    listen = await _listen(front, host, port)
    with place.announced(listen, front.target.zone, front.target.url, front.token):
        for line in _READY.format(zone=front.target.zone, url=front.target.url).splitlines():
            screen.note(line)
        await ended.wait()
    return 0


async def _command(front: Front, place: Place, known: Credentials, argv: list[str], host: str, port: int) -> int:
    """Serve while a command runs. Ctrl-C is the command's: Terraform finishes what it does, and needs us for it."""
    import asyncio
    import signal

    from pgherd.front.environment import variables

    target = front.target
    running = {"listen": await _listen(front, host, port), "zone": target.zone, "url": target.url}
    added = variables(place.bundle, running | {"token": front.token}, (known.key, known.secret), os.environ)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    try:
        child = await asyncio.create_subprocess_exec(*argv, env={**os.environ, **added})
    except OSError as error:
        raise CliError(Exit.USAGE, f"Cannot run {argv[0]}: {(error.strerror or str(error)).lower()}.") from None
    loop.add_signal_handler(signal.SIGTERM, child.terminate)
    code = await child.wait()
    return code if code >= 0 else 128 - code


async def _listen(front: Front, host: str, port: int) -> str:
    try:
        server = await front.serve(host, port)
    except OSError as error:
        raise CliError(
            Exit.FAILED,
            f"Cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}.",
            "Choose another: --listen 127.0.0.1:PORT",
        ) from None
    taken = server.sockets[0].getsockname()
    return f"[{taken[0]}]:{taken[1]}" if ":" in taken[0] else f"{taken[0]}:{taken[1]}"


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        if ipaddress.ip_address(host.strip("[]")).is_loopback and 0 <= int(port) < 65536:
            return host.strip("[]"), int(port)
    except ValueError:
        pass
    raise CliError(Exit.USAGE, f"--listen must be a loopback address and a port, as {_LISTEN}, not {listen!r}.")


def _credentials() -> Credentials:
    """As every command, but in a shell that is set up for the front the instance's own file counts."""
    known = credentials.find()
    if f".{known.host}".endswith(".exoscale.com"):
        own = {name: value for name, value in os.environ.items() if name != credentials.VARIABLES[0]}
        try:
            file = credentials.find(own)
        except CliError as error:
            hint = f"Set {credentials.VARIABLES[0]} to the URL of your instance."
            raise CliError(Exit.USAGE, f"{known.endpoint} is the hosted service, not an instance.", hint) from error
        return credentials.Credentials(file.endpoint, known.key, known.secret, origin=known.origin)
    return known


def _zone(known: Credentials) -> str:
    """The zone that the instance serves; Terraform's names hold it."""
    from pgherd.cli.client import Api

    zones = Api(known).call("list-zones")["zones"]
    return str(zones[0]["name"])
