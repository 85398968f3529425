"""`pgherd host`: where services run, and what runs there that the metadata does not know."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pgherd.cli import screen
from pgherd.cli.client import connect
from pgherd.cli.describe import age, size
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.platform import Yes, ask, done
from pgherd.cli.screen import Form

app = typer.Typer(no_args_is_help=True, help="Hosts that services run on.")

Node = Annotated[str, typer.Argument(metavar="NODE", help="Id of the node, as `pgherd host list` shows it.")]
HostName = Annotated[str, typer.Option("--host", help="Its host, when more than one reports it.")]


@app.callback()
def group(form: Form = None) -> None:
    """Hosts that services run on."""


@app.command("list")
def list_hosts(form: Form = None) -> None:
    """List the hosts of the zone, and the nodes there that the metadata does not know."""
    found = connect().own("GET", "host")["hosts"]
    now = datetime.now(UTC)
    rows = [
        (
            one["name"],
            one["services"],
            one.get("cores", ""),
            _size(one, "memory"),
            _size(one, "memory-promised"),
            ", ".join((one.get("versions") or {}).values()),
            age(one.get("seen-at"), now),
        )
        for one in found
    ]
    headers = ("NAME", "SERVICES", "CORES", "MEMORY", "PROMISED", "POSTGRESQL", "SEEN")
    screen.show_rows(found, headers, rows)
    unknown = [(one["name"], node) for one in found for node in one.get("unknown-nodes", ())]
    if not unknown or screen.as_json():
        return
    screen.note("\nNodes that the metadata does not know, as after it was restored from an older copy:")
    titles = ("HOST", "NODE", "ORGANIZATION", "SERVICE", "PLAN", "VERSION", "PORT", "DISK", "STATE")
    fields = ("id", "organization", "service", "plan", "version", "port")
    shown = [
        (host, *(node.get(field, "") for field in fields), _size(node, "disk-used"), node["state"])
        for host, node in unknown
    ]
    screen.show_rows(unknown, titles, shown)
    screen.next_steps("pgherd host adopt NODE", "pgherd host forget NODE")


@app.command("adopt")
def adopt(
    node: Node,
    organization: Annotated[str, typer.Option("--org", help="Organization; the one it was of if left out.")] = "",
    name: Annotated[str, typer.Option("--name", help="Name of the service; the one it had if left out.")] = "",
    host: HostName = "",
    form: Form = None,
) -> None:
    """Take a node that the metadata does not know into it again, with its service.

    Data, users, pools and settings stay as they are. Termination protection is turned on. Passwords that the API gave
    stay valid and cannot be revealed any more; reset one to get one that can.
    """
    api = connect()
    body = {key: value for key, value in (("organization", organization), ("name", name)) if value}
    answer = api.own("POST", "host", host or _host_of(api, node), "node", node, body=body)
    if answer["state"] == "pending":
        done(answer, f"{answer['service']} is known again, and is still being brought into force.")
    else:
        done(answer, f"{answer['service']} is known again and runs.")


@app.command("forget")
def forget(node: Node, confirmed: Yes = False, host: HostName = "", form: Form = None) -> None:
    """Have a node that the metadata does not know deleted on its host, with its data."""
    api = connect()
    where = host or _host_of(api, node)
    ask(confirmed, f"Delete node {node} on host {where} with its data, for good?")
    answer = api.own("DELETE", "host", where, "node", node)
    done(answer, "The host deletes the node; `pgherd host list` shows it until it is gone.")


def _host_of(api: Any, node: str) -> str:
    """The one host that reports the node."""
    hosts = api.own("GET", "host")["hosts"]
    found = [host["name"] for host in hosts if any(node == one["id"] for one in host["unknown-nodes"])]
    if not found:
        raise CliError(Exit.NOT_FOUND, f"No host reports an unknown node {node}.", "See: pgherd host list")
    if len(found) > 1:
        raise CliError(Exit.USAGE, f"More than one host reports the node: {', '.join(found)}.", "Name one with --host.")
    return str(found[0])


def _size(thing: dict[str, Any], field: str) -> str:
    return size(thing[field]) if field in thing else ""
