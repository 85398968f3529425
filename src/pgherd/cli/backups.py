"""`pgherd backup`: take one now, and see what there is and to which times one can go back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pgherd.cli import screen
from pgherd.cli.client import Api, connect
from pgherd.cli.complete import services
from pgherd.cli.describe import size
from pgherd.cli.options import Timeout, Wait
from pgherd.cli.outcome import CliError
from pgherd.cli.screen import Form

app = typer.Typer(no_args_is_help=True, help="Backups of a service: create, list, verify.")

Service = Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the service.", autocompletion=services)]
Full = Annotated[
    bool | None,
    typer.Option("--full/--incremental", help="Copy everything, or only what changed.", show_default="as it fits"),
]
_BAR = 20  # characters


@app.callback()
def group(form: Form = None) -> None:
    """Backups of a service: create, list, verify."""


@app.command()
def create(
    service: Service,
    full: Full = None,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Back a service up now, beside its daily backup."""
    from pgherd.cli.waiting import sending, until_operation_ends

    api = connect()
    with sending(service):
        operation = api.own("POST", "service", service, "backup", body={} if full is None else {"full": full})
    if not wait:
        screen.show_facts(operation, [("Operation", operation["id"]), ("State", operation["state"])])
        return
    title = f"Backing up {service}"
    until_operation_ends(api, operation, title, service=service, timeout=timeout, now=lambda: _progress(api, service))
    _show(_list(api, service))


@app.command()
def verify(service: Service, wait: Wait = True, timeout: Timeout = None, form: Form = None) -> None:
    """Prove now that a service's backups can be restored.

    The newest backup is restored beside the service, recovered to the newest archived WAL and checked with all its
    tables and indexes; the whole repository and every page of the service are read. This happens by itself too.
    """
    from pgherd.cli.waiting import sending, until_operation_ends

    api = connect()
    with sending(service):
        operation = api.own("POST", "service", service, "verification")
    if not wait:
        screen.show_facts(operation, [("Operation", operation["id"]), ("State", operation["state"])])
        return
    title = f"Verifying the backups of {service}"
    now = lambda: _progress(api, service, "verifying")  # noqa: E731
    until_operation_ends(api, operation, title, service=service, timeout=timeout, now=now)
    found = _list(api, service)["verification"]
    screen.show_facts(found, _proof(found))


def _proof(found: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("Backups", found["state"]),
        ("Restored", found["backup"]),
        ("Recovered to", f"{found.get('lsn', '')} {found.get('recovered-to', '')}".strip()),
        ("Looked at", f"{found['databases']} databases, {found['tables']} tables, {found['rows']} rows"),
        ("Took", f"{found['seconds']:.0f} s"),
    ]


@app.command("list")
def list_backups(service: Service, form: Form = None) -> None:
    """List the backups of a service, the oldest first, and the times to which it can be restored."""
    _show(_list(connect(), service))


def _list(api: Api, service: str) -> dict[str, Any]:
    found: dict[str, Any] = api.own("GET", "service", service, "backup")
    return found


def _show(found: dict[str, Any]) -> None:
    rows = [
        (
            one["name"],
            one["time"],
            one["type"],
            size(one["size"]),
            size(one["stored"]),
            _state(one),
            one.get("verified-at", ""),
        )
        for one in found["backups"]
    ]
    empty = "There are no backups yet; the first follows half a minute after the service is made."
    screen.show_rows(found, ("BACKUP", "TIME", "TYPE", "SIZE", "STORED", "STATE", "VERIFIED"), rows, empty)
    if screen.as_json():
        return
    if window := found.get("window"):
        screen.note(f"Can be restored to any time from {window['earliest']} to {window['latest']}.")
    if "gap-at" in found:
        screen.note(f"WAL was given up at {found['gap-at']}: times between the backups around it cannot be restored.")
    if "running" in found:
        screen.note(f"A backup is running: {bar(found['running'])}")
    if "verifying" in found:
        screen.note(f"The newest backup is being verified: {bar(found['verifying'])}")
    if (proof := found.get("verification")) and proof["state"] != "sound":
        screen.note(f"The verification of {proof['at']} says: {proof['state']}. " + " ".join(proof["problems"]))
    for span in (proof or {}).get("broken", ()):
        screen.note(f"No point in time can be restored from {span['start']} to {span['end']}.")
    if "problem" in found:
        screen.note(f"Problem: {found['problem']}")


def _state(backup: dict[str, Any]) -> str:
    return "damaged" if backup["damaged"] else "ok"


def _progress(api: Api, service: str, what: str = "running") -> str:
    try:
        running = _list(api, service).get(what)
    except CliError:
        return ""
    return bar(running) if running else ""


def bar(running: dict[str, Any]) -> str:
    """How far it has come, as a bar and in percent; or that it waits."""
    if running["state"] == "waiting":
        return "waits for its turn"
    done = int(running["progress"] * _BAR)
    return f"[{'#' * done}{'.' * (_BAR - done)}] {running['progress']:.0%}"
