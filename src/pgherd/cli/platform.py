"""`pgherd org`, `pgherd key`, `pgherd events`: who may use the platform, and who did."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pgherd.cli import screen
from pgherd.cli.client import connect
from pgherd.cli.describe import age
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.screen import Form

org = typer.Typer(no_args_is_help=True, help="Organizations: each has its own services, keys and CA.")
key = typer.Typer(no_args_is_help=True, help="API keys of organizations.")

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@org.callback()
def org_group(form: Form = None) -> None:
    """Organizations: each has its own services, keys and CA."""


@key.callback()
def key_group(form: Form = None) -> None:
    """API keys of organizations."""


@org.command("create")
def create_org(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new organization.")], form: Form = None
) -> None:
    """Create an organization."""
    answer = connect().own("POST", "organization", body={"name": name})
    screen.show_facts(answer, [("Organization", name), ("Id", answer.get("id"))])
    screen.next_steps(f"pgherd key create admin --organization {name}")


@org.command("list")
def list_orgs(form: Form = None) -> None:
    """List the organizations."""
    found = connect().own("GET", "organization")["organizations"]
    rows = [(one["name"], one.get("services", ""), _age(one), one.get("id", "")) for one in found]
    screen.show_rows(found, ("NAME", "SERVICES", "CREATED", "ID"), rows)


@org.command("delete")
def delete_org(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the organization.")],
    confirmed: Yes = False,
    form: Form = None,
) -> None:
    """Delete an organization that has no services any more, with its keys."""
    ask(confirmed, f"Delete organization {name} with its keys?")
    answer = connect().own("DELETE", "organization", name)
    done(answer, f"Organization {name} is deleted.")


@key.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    organization: Annotated[
        str | None, typer.Option("--organization", help="Organization that it belongs to.", show_default="your own")
    ] = None,
    role: Annotated[str, typer.Option(help="operator, admin or read-only.")] = "admin",
    form: Form = None,
) -> None:
    """Create an API key; its secret is shown this once."""
    body = {"name": name, "role": role} | ({"organization": organization} if organization else {})
    answer = connect().own("POST", "api-key", body=body)
    fields = ("key", "secret", "organization", "role")
    screen.show_facts(answer, [(field.capitalize(), answer[field]) for field in fields])
    if not screen.as_json():
        screen.note("The secret is not shown again.")


@key.command("list")
def list_keys(
    organization: Annotated[str, typer.Option("--organization", help="Only those of this organization.")] = "",
    form: Form = None,
) -> None:
    """List API keys, without their secrets."""
    found = connect().own("GET", "api-key")["api-keys"]
    found = [one for one in found if organization in ("", one.get("organization"))]
    empty = f"There is no key of an organization {organization}. See what exists: pgherd org list"
    rows = [
        (one["key"], one["name"], one.get("organization", ""), one["role"], _age(one), _validity(one)) for one in found
    ]
    screen.show_rows(found, ("KEY", "NAME", "ORGANIZATION", "ROLE", "CREATED", "STATE"), rows, empty)


@key.command("revoke")
def revoke_key(
    ident: Annotated[str, typer.Argument(metavar="KEY", help="The key, not its name.")],
    confirmed: Yes = False,
    form: Form = None,
) -> None:
    """Revoke an API key: from now on it is refused."""
    api = connect()
    own = ident == api.credentials.key
    ask(confirmed, f"Revoke {ident}{', the key that you use now' if own else ''}?")
    answer = api.own("DELETE", "api-key", ident)
    local = own and api.credentials.origin.startswith("/")
    more = " It was this command line's own; `make up` makes another." if local else ""
    done(answer, f"{ident} is revoked.{more}")


def events(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, help="Only those older than the event of this id.")] = None,
    form: Form = None,
) -> None:
    """List who changed or revealed what, the newest first."""
    query = f"limit={limit}" + (f"&before={before}" if before else "")
    found = connect().own("GET", "event", query=query)["events"]
    shown = ("organization", "key", "remote", "command", "subject", "result")
    rows = [
        (one["id"], one["at"][:19].replace("T", " "), *(one[name] for name in shown), _became(one)) for one in found
    ]
    headers = ("ID", "TIME (UTC)", "ORGANIZATION", "KEY", "FROM", "WHAT", "ABOUT", "RESULT", "OPERATION")
    screen.show_rows(found, headers, rows, "Nothing has been changed or revealed yet.")


def _became(event: dict[str, Any]) -> str:
    """The operation of an event, and its state while that is known."""
    return " ".join(event[name] for name in ("operation", "outcome") if name in event)


def _age(thing: dict[str, Any]) -> str:
    return age(thing.get("created-at"), datetime.now(UTC))


def _validity(one: dict[str, Any]) -> str:
    return "revoked" if one.get("revoked-at") else "valid"


def ask(confirmed: bool, question: str) -> None:
    """Ask unless it was confirmed already. Raises CliError when there is nobody to ask, Abort at a no."""
    if confirmed:
        return
    if not sys.stdin.isatty():
        raise CliError(Exit.USAGE, "This needs a yes, and there is nobody to ask.", "Say --yes.")
    typer.confirm(question, abort=True, err=True)


def done(answer: Any, text: str) -> None:
    """Print the answer as JSON, or the text for a person."""
    if screen.as_json():
        screen.print_json(answer)
    else:
        screen.note(text)
