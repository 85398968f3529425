"""What the commands of users, databases and pools have in common: they stand in a list of their service."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pgherd.cli import describe, screen
from pgherd.cli.client import Api, connect
from pgherd.cli.complete import services
from pgherd.cli.options import Timeout, Wait
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.screen import Form

Service = Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the service.", autocompletion=services)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True)
class Waiting:
    """What the options say of waiting for the end."""

    wait: bool
    timeout: float | None


@dataclass(frozen=True)
class Kind:
    """`field` is the service's list, `key` what names a thing in it (empty: it is a list of names).

    `delete` is the operation that deletes one, `loses` what that takes along.
    """

    noun: str
    field: str
    key: str
    delete: str
    loses: str

    def all(self, api: Api, service: str) -> list[Any]:
        """Those of the service."""
        return list(api.call("get-dbaas-service-pg", service).get(self.field) or [])

    def one(self, api: Api, service: str, name: str) -> dict[str, Any]:
        """The thing of that name. Raises CliError."""
        for one in self.all(api, service):
            if (one[self.key] if self.key else one) == name:
                return dict(one) if self.key else {"name": one}
        hint = f"See them: pgherd {self.noun} list {service}"
        raise CliError(Exit.NOT_FOUND, f"{service} has no {self.noun} {name}.", hint)

    def change(
        self, operation: str, service: str, name: str, doing: str, how: Waiting, body: Any = None, *path: str
    ) -> None:
        """Have an operation carried out; wait if asked to, and print what came of it: the thing, or the operation."""
        from pgherd.cli.waiting import until_operation_ends

        api, title = connect(), f"{doing} {name}"
        opened = api.call(operation, service, *path, body=body)
        if not how.wait:
            screen.show_facts(opened, describe.operation_facts(opened))
            screen.next_steps(f"pgherd operation show {opened['id']} --wait")
            return
        ended = until_operation_ends(api, opened, title, service=service, timeout=how.timeout)
        if operation != self.delete:
            show(self.one(api, service, name))
        elif screen.as_json():
            screen.print_json(ended)
        else:
            screen.note(f"{title}: done.")


def show(thing: Mapping[str, Any]) -> None:
    """Print the fields of a thing."""
    facts = [(name.replace("-", " ").capitalize(), value) for name, value in thing.items()]
    screen.show_facts(
        thing, [(name, describe.yes(value) if isinstance(value, bool) else value) for name, value in facts]
    )


def group(kind: Kind, verbs: str) -> typer.Typer:
    """The commands of a kind; `verbs` for its help."""
    words = f"{kind.noun.capitalize()}s of a service: {verbs}."
    made = typer.Typer(no_args_is_help=True, help=words)

    def callback(form: Form = None) -> None:
        pass

    made.callback(help=words)(callback)
    return made


def add_show(app: typer.Typer, kind: Kind) -> None:
    """`show SERVICE NAME`."""

    def command(service: Service, name: str, form: Form = None) -> None:
        show(kind.one(connect(), service, name))

    command.__annotations__["name"] = _argument(kind)
    app.command("show", help=f"Show a {kind.noun}.")(command)


def add_delete(app: typer.Typer, kind: Kind) -> None:
    """`delete SERVICE NAME`, which asks first."""

    def command(
        service: Service, name: str, yes: Yes = False, wait: Wait = True, timeout: Timeout = None, form: Form = None
    ) -> None:
        _ask(yes, f"Delete {kind.noun} {name} of {service}? {kind.loses}")
        how = Waiting(wait, timeout)
        kind.change(kind.delete, service, name, f"Deleting {kind.noun}", how, None, name)

    command.__annotations__["name"] = _argument(kind)
    app.command("delete", help=f"Delete a {kind.noun}. {kind.loses}")(command)


def _argument(kind: Kind) -> Any:
    return Annotated[str, typer.Argument(metavar=kind.noun.upper(), help=f"Name of the {kind.noun}.")]


def _ask(confirmed: bool, question: str) -> None:
    if confirmed:
        return
    if not sys.stdin.isatty():
        raise CliError(Exit.USAGE, f"{question} There is nobody to ask.", "Say --yes.")
    typer.confirm(question, abort=True, err=True)
