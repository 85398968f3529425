"""`pgherd operation` and `pgherd api`: any operation of the contract, and how one goes on."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from pgherd.cli import describe, screen
from pgherd.cli.client import connect, document, operations, path_parameters, route_of
from pgherd.cli.options import Timeout
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.screen import Form

app = typer.Typer(no_args_is_help=True, help="Operations: how one goes on.")

#: Paths of the contract that concern PostgreSQL services; `pgherd api --list --all` shows the others too.
_OURS = re.compile(r"/(zone|operation|dbaas-(postgres|service|task|migration|settings-pg|ca-certificate|integration))")


@app.callback()
def group(form: Form = None) -> None:
    """Operations: how one goes on."""


@app.command()
def show(
    ident: Annotated[str, typer.Argument(metavar="ID", help="Id of the operation.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Show an operation; ends with an error if it failed."""
    from pgherd.cli.waiting import failed, service_of, until_operation_ends

    api = connect()
    operation = api.call("get-operation", ident)
    service = service_of(operation)
    if wait and operation["state"] == "pending":
        operation = until_operation_ends(api, operation, f"Operation {ident}", service=service, timeout=timeout)
    screen.show_facts(operation, describe.operation_facts(operation))
    if operation["state"] not in ("pending", "success"):
        raise failed(operation, service)


def call(
    operation_id: Annotated[
        str | None, typer.Argument(metavar="OPERATION-ID", help="Id in the contract, such as get-dbaas-service-pg.")
    ] = None,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH PARAMETERS] [BODY]", help="Path parameters, then the body.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the operations instead.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="With --list: those of other products too.")] = False,
    form: Form = None,
) -> None:
    """Call any operation of the API and print its answer as JSON.

    The body is JSON, @FILE, - for standard input, or pairs as in `plan: startup-4, ip-filter: [10.0.0.0/8]`.
    With --list, OPERATION-ID is a part of the names to list.
    """
    if listing:
        _list(operation_id or "", everything)
        return
    if operation_id is None:
        raise CliError(Exit.USAGE, "Which operation?", "See them: pgherd api --list")
    from pgherd.cli.values import read_body

    route = route_of(operation_id)
    count = len(path_parameters(route))
    rest = (words or [])[count:]
    schema = _body_schema(route)
    if rest and schema is None:
        raise CliError(Exit.USAGE, f"{operation_id} takes no body, but {' '.join(rest)!r} was given.")
    body = read_body(rest, schema, document())
    try:
        screen.print_json(connect().call(operation_id, *(words or [])[:count], body=body))
    except CliError as error:
        if error.code is Exit.NOT_FOUND and not error.hint and not _OURS.match(route["path"]):
            error.hint = f"{operation_id} is of another product. This API has: pgherd api --list"
        raise


def _body_schema(route: dict[str, Any]) -> dict[str, Any] | None:
    content = route["operation"].get("requestBody", {}).get("content", {})
    schema: dict[str, Any] | None = content.get("application/json", {}).get("schema")
    return schema


def _list(part: str, everything: bool) -> None:
    found = []
    for ident, route in sorted(operations().items()):
        if part in ident and (everything or _OURS.match(route["path"])):
            summary = route["operation"].get("summary", "")
            parameters = path_parameters(route)
            body = _body_schema(route) is not None
            found.append({"id": ident, "path-parameters": parameters, "body": body, "summary": summary})
    rows = [(one["id"], _arguments(one["path-parameters"], one["body"]), one["summary"]) for one in found]
    screen.show_rows(found, ("OPERATION", "ARGUMENTS", "WHAT IT DOES"), rows, "No operation is called so.")


def _arguments(parameters: list[str], body: bool) -> str:
    return " ".join([*(name.upper() for name in parameters), *(["[BODY]"] if body else [])])
