"""`pgherd user`, `pgherd database`, `pgherd pool`: who may use a service's databases, and how they connect."""

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
from pgherd.cli.secrets_in import read_secret

user = typer.Typer(no_args_is_help=True, help="Users of a service: create, list, show, passwords, delete.")
database = typer.Typer(no_args_is_help=True, help="Databases of a service: create, list, show, delete.")
pool = typer.Typer(no_args_is_help=True, help="Connection pools of a service: create, list, show, update, delete.")

Service = Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the service.", autocompletion=services)]
User = Annotated[str, typer.Argument(metavar="USER", help="Name of the user.")]
Database = Annotated[str, typer.Argument(metavar="DATABASE", help="Name of the database.")]
Pool = Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Mode = Annotated[str | None, typer.Option(help="transaction, session or statement.", show_default="transaction")]
Size = Annotated[int | None, typer.Option(min=1, max=10000, help="Connections to PostgreSQL.", show_default="10")]
PoolUser = Annotated[
    str | None, typer.Option("--user", help="User whose pool it is; everyone logs in as themselves if not given.")
]


@user.callback()
def user_group(form: Form = None) -> None:
    """Users of a service: create, list, show, passwords, delete."""


@database.callback()
def database_group(form: Form = None) -> None:
    """Databases of a service: create, list, show, delete."""


@pool.callback()
def pool_group(form: Form = None) -> None:
    """Connection pools of a service: create, list, show, update, delete."""


# --- users -----------------------------------------------------------------------------------------------------------


@user.command("create")
def create_user(
    service: Service,
    name: User,
    allow_replication: Annotated[
        bool, typer.Option("--allow-replication", help="Let it replicate: it may read everything in the service.")
    ] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Create a user; its password is a random one, see `pgherd user reveal`."""
    body = {"username": name} | ({"allow-replication": True} if allow_replication else {})
    api = connect()
    operation = api.call("create-dbaas-postgres-user", service, body=body)
    _end(api, operation, service, ("users", "username", name), f"Creating user {name}", wait, timeout)


@user.command("list")
def list_users(service: Service, form: Form = None) -> None:
    """List the users of a service, those that were made in SQL too."""
    found = _all(connect(), service, "users")
    rows = [(one["username"], one["type"], describe.yes(one.get("allow-replication"))) for one in found]
    screen.show_rows(found, ("USER", "TYPE", "REPLICATION"), rows)


@user.command("show")
def show_user(service: Service, name: User, form: Form = None) -> None:
    """Show a user."""
    _show(_one(connect(), service, ("users", "username", name)))


@user.command("delete")
def delete_user(
    service: Service, name: User, yes: Yes = False, wait: Wait = True, timeout: Timeout = None, form: Form = None
) -> None:
    """Delete a user; what it owns passes to the service's admin."""
    _ask(yes, f"Delete user {name} of {service}?")
    api = connect()
    operation = api.call("delete-dbaas-postgres-user", service, name)
    _end(api, operation, service, None, f"Deleting user {name}", wait, timeout)


@user.command("reset-password")
def reset_password(
    service: Service,
    name: User,
    password: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Where the new password is: - (asked, or from standard input), @FILE or env:NAME.",
            show_default="a random one",
        ),
    ] = None,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Give a user another password; the old one ends at once."""
    body = {} if password is None else {"password": read_secret(password, "Password")}
    api = connect()
    operation = api.call("reset-dbaas-postgres-user-password", service, name, body=body)
    _end(api, operation, service, ("users", "username", name), f"Resetting the password of {name}", wait, timeout)


@user.command("reveal")
def reveal(service: Service, name: User, form: Form = None) -> None:
    """Print a user's password; this leaves an event."""
    answer = connect().call("reveal-dbaas-postgres-user-password", service, name)
    if screen.as_json():
        screen.print_json(answer)
    else:
        typer.echo(answer["password"])


@user.command("allow-replication")
def allow_replication(
    service: Service,
    name: User,
    off: Annotated[bool, typer.Option("--off", help="Take the right away again.")] = False,
    form: Form = None,
) -> None:
    """Let a user replicate: it may then read everything in the service."""
    answer = connect().call(
        "update-dbaas-postgres-allow-replication", service, name, body={"allow-replication": not off}
    )
    rows = [(one["username"], describe.yes(one.get("allow-replication"))) for one in answer["users"]]
    screen.show_rows(answer["users"], ("USER", "REPLICATION"), rows)


# --- databases -------------------------------------------------------------------------------------------------------


@database.command("create")
def create_database(
    service: Service,
    name: Database,
    lc_collate: Annotated[str | None, typer.Option(help="Sort order.", show_default="en_US.UTF-8")] = None,
    lc_ctype: Annotated[str | None, typer.Option(help="Kinds of characters.", show_default="en_US.UTF-8")] = None,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Create a database; the service's admin owns it."""
    locales = {"lc-collate": lc_collate, "lc-ctype": lc_ctype}
    body = {"database-name": name} | {field: value for field, value in locales.items() if value is not None}
    api = connect()
    operation = api.call("create-dbaas-pg-database", service, body=body)
    _end(api, operation, service, ("databases", "", name), f"Creating database {name}", wait, timeout)


@database.command("list")
def list_databases(service: Service, form: Form = None) -> None:
    """List the databases of a service, those that were made in SQL too."""
    found = _all(connect(), service, "databases")
    screen.show_rows(found, ("DATABASE",), [(name,) for name in found])


@database.command("show")
def show_database(service: Service, name: Database, form: Form = None) -> None:
    """Show a database and the pools that use it."""
    api = connect()
    found = _one(api, service, ("databases", "", name))
    pools = [one["name"] for one in _all(api, service, "connection-pools") if one["database"] == name]
    screen.show_facts(found | {"pools": pools}, [("Database", name), ("Pools", ", ".join(pools))])


@database.command("delete")
def delete_database(
    service: Service, name: Database, yes: Yes = False, wait: Wait = True, timeout: Timeout = None, form: Form = None
) -> None:
    """Delete a database with all that is in it, whoever is connected."""
    _ask(yes, f"Delete database {name} of {service} with all its data?")
    api = connect()
    operation = api.call("delete-dbaas-pg-database", service, name)
    _end(api, operation, service, None, f"Deleting database {name}", wait, timeout)


# --- pools -----------------------------------------------------------------------------------------------------------


@pool.command("create")
def create_pool(
    service: Service,
    name: Pool,
    of: Annotated[str, typer.Option("--database", help="Database that it connects to.")] = "defaultdb",
    mode: Mode = None,
    size: Size = None,
    username: PoolUser = None,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Create a connection pool."""
    body = {"name": name, "database-name": of} | _given(mode, size, username)
    api = connect()
    operation = api.call("create-dbaas-pg-connection-pool", service, body=body)
    _end(api, operation, service, ("connection-pools", "name", name), f"Creating pool {name}", wait, timeout)


@pool.command("list")
def list_pools(service: Service, form: Form = None) -> None:
    """List the connection pools of a service."""
    found = _all(connect(), service, "connection-pools")
    rows = [(one["name"], one["database"], one["mode"], one["size"], one["username"] or "(all)") for one in found]
    empty = f"There is no pool yet. Create one: pgherd pool create {service} mypool"
    screen.show_rows(found, ("POOL", "DATABASE", "MODE", "SIZE", "USER"), rows, empty)


@pool.command("show")
def show_pool(service: Service, name: Pool, form: Form = None) -> None:
    """Show a connection pool with its URI."""
    _show(_one(connect(), service, ("connection-pools", "name", name)))


@pool.command("update")
def update_pool(
    service: Service,
    name: Pool,
    of: Annotated[str | None, typer.Option("--database", help="Another database.")] = None,
    mode: Mode = None,
    size: Size = None,
    username: PoolUser = None,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Change what you name of a connection pool; the rest stays as it is."""
    body = ({"database-name": of} if of is not None else {}) | _given(mode, size, username)
    if not body:
        raise CliError(Exit.USAGE, "Nothing to change.", "Say what: pgherd pool update --help")
    api = connect()
    operation = api.call("update-dbaas-pg-connection-pool", service, name, body=body)
    _end(api, operation, service, ("connection-pools", "name", name), f"Changing pool {name}", wait, timeout)


@pool.command("delete")
def delete_pool(
    service: Service, name: Pool, yes: Yes = False, wait: Wait = True, timeout: Timeout = None, form: Form = None
) -> None:
    """Delete a connection pool; its clients are disconnected."""
    _ask(yes, f"Delete connection pool {name} of {service}?")
    api = connect()
    operation = api.call("delete-dbaas-pg-connection-pool", service, name)
    _end(api, operation, service, None, f"Deleting pool {name}", wait, timeout)


# --- what they share -------------------------------------------------------------------------------------------------


def _given(mode: str | None, size: int | None, username: str | None) -> dict[str, Any]:
    fields = {"mode": mode, "size": size, "username": username}
    return {name: value for name, value in fields.items() if value is not None}


def _all(api: Api, service: str, field: str) -> list[Any]:
    return list(api.call("get-dbaas-service-pg", service).get(field) or [])


def _one(api: Api, service: str, which: tuple[str, str, str]) -> dict[str, Any]:
    """The thing in the service's list `field` whose `key` is `name`; a list of mere names has no key."""
    field, key, name = which
    for one in _all(api, service, field):
        if (one[key] if key else one) == name:
            return dict(one) if key else {"name": one}
    what = {"users": "user", "databases": "database"}.get(field, "pool")
    raise CliError(Exit.NOT_FOUND, f"{service} has no {what} {name}.", f"See them: pgherd {what} list {service}")


def _show(thing: dict[str, Any]) -> None:
    facts = [(name.replace("-", " ").capitalize(), value) for name, value in thing.items()]
    shown = [(name, describe.yes(value) if isinstance(value, bool) else value) for name, value in facts]
    screen.show_facts(thing, shown)


def _ask(confirmed: bool, question: str) -> None:
    if confirmed:
        return
    if not sys.stdin.isatty():
        raise CliError(Exit.USAGE, f"{question} There is nobody to ask.", "Say --yes.")
    typer.confirm(question, abort=True, err=True)


def _end(
    api: Api,
    operation: dict[str, Any],
    service: str,
    which: tuple[str, str, str] | None,
    title: str,
    wait: bool,
    timeout: float | None,
) -> None:
    """Wait if asked to, and print what came of it: the thing, or the operation."""
    from pgherd.cli.waiting import until_operation_ends

    if not wait:
        screen.show_facts(operation, describe.operation_facts(operation))
        screen.next_steps(f"pgherd operation show {operation['id']} --wait")
        return
    operation = until_operation_ends(api, operation, title, service=service, timeout=timeout)
    if which is not None:
        _show(_one(api, service, which))
    elif screen.as_json():
        screen.print_json(operation)
    else:
        screen.note(f"{title}: done.")
