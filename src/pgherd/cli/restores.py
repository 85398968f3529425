"""`pgherd service restore` and `undelete`: a service's data of an earlier time, in place, and a deleted one back."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from pgherd.cli import describe, screen
from pgherd.cli.client import Api, connect
from pgherd.cli.complete import services
from pgherd.cli.options import Timeout, Wait
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.screen import Form

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the service.", autocompletion=services)]


def restore(
    name: Name,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="ISO 8601 time; UTC when it has no offset.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Bring the data back that was put aside.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Delete the data that was put aside.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Put a service's data back to an earlier time, in place.

    The data from before is kept, and takes its room on the disk, until you --undo or --confirm.
    """
    if (to is not None) + undo + confirm != 1:
        raise CliError(Exit.USAGE, "Say one of --to TIME, --undo and --confirm.")
    if undo:
        _ask(yes, f"Delete all that was written to {name} since its restore?")
        _carry_out(("service", name, "restore", "undo"), None, name, "Bringing back", wait, timeout)
    elif confirm:
        _ask(yes, f"Delete the data of {name} from before its restore?")
        _carry_out(("service", name, "restore", "confirm"), None, name, "Confirming", wait, timeout)
    else:
        _ask(yes, f"Put all data of {name} back to {to}?")
        _carry_out(("service", name, "restore"), {"to": to}, name, "Restoring", wait, timeout)
        screen.next_steps(f"pgherd service restore {name} --confirm", f"pgherd service restore {name} --undo")


def undelete(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name that the service had.")] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the deleted services that can be brought back.")
    ] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Bring a deleted service back from its backups, as long as they are kept; its ports may be others."""
    if listing or name is None:
        found = connect().own("GET", "kept-service")["services"]
        rows = [(one["name"], one["deleted-at"], one["kept-until"]) for one in found]
        screen.show_rows(found, ("NAME", "DELETED", "KEPT UNTIL"), rows, "No deleted service is kept.")
        return
    _carry_out(("service", name, "undelete"), None, name, "Bringing back", wait, timeout)


def _carry_out(
    path: tuple[str, ...], body: dict[str, Any] | None, name: str, verb: str, wait: bool, timeout: float | None
) -> None:
    from pgherd.cli.waiting import until_operation_ends

    api = connect()
    operation = api.own("POST", *path, body=body)
    if not wait:
        screen.show_facts(operation, describe.operation_facts(operation))
        screen.next_steps(f"pgherd operation show {operation['id']} --wait")
        return
    until_operation_ends(api, operation, f"{verb} {name}", service=name, timeout=timeout)
    _show(api, name)


def _show(api: Api, name: str) -> None:
    from datetime import UTC, datetime

    service = api.call("get-dbaas-service-pg", name)
    screen.show_facts(service, describe.service_facts(service, datetime.now(UTC)))


def _ask(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CliError(Exit.USAGE, f"{question} There is nobody to ask.", "Say --yes.")
    typer.confirm(question, abort=True, err=True)
