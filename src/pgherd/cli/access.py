"""`pgherd user`, `pgherd database`, `pgherd pool`: who may use a service's databases, and how they connect."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pgherd.cli import describe, screen
from pgherd.cli.client import connect
from pgherd.cli.kinds import Kind, Service, Waiting, add_delete, add_show, group
from pgherd.cli.options import Timeout, Wait
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.screen import Form
from pgherd.cli.secrets_in import read_secret

_USER = Kind(
    "user", "users", "username", "delete-dbaas-postgres-user", "What it owns passes to the service's admin."
)  # fmt: skip
_DATABASE = Kind("database", "databases", "", "delete-dbaas-pg-database", "All its data goes, whoever is connected.")
_POOL = Kind("pool", "connection-pools", "name", "delete-dbaas-pg-connection-pool", "Its clients are disconnected.")

user = group(_USER, "create, list, show, passwords, delete")
database = group(_DATABASE, "create, list, show, delete")
pool = group(_POOL, "create, list, show, update, delete")

User = Annotated[str, typer.Argument(metavar="USER", help="Name of the user.")]
Database = Annotated[str, typer.Argument(metavar="DATABASE", help="Name of the database.")]
Pool = Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool.")]
Mode = Annotated[str | None, typer.Option(help="transaction, session or statement.", show_default="transaction")]
Size = Annotated[int | None, typer.Option(min=1, max=10000, help="Connections to PostgreSQL.", show_default="10")]
PoolUser = Annotated[
    str | None, typer.Option("--user", help="User whose pool it is; everyone logs in as themselves if not given.")
]


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
    _USER.change("create-dbaas-postgres-user", service, name, "Creating user", Waiting(wait, timeout), body)


@user.command("list")
def list_users(service: Service, form: Form = None) -> None:
    """List the users of a service, those that were made in SQL too."""
    found = _USER.all(connect(), service)
    rows = [(one["username"], one["type"], describe.yes(one.get("allow-replication"))) for one in found]
    screen.show_rows(found, ("USER", "TYPE", "REPLICATION"), rows)


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
    how = Waiting(wait, timeout)
    _USER.change("reset-dbaas-postgres-user-password", service, name, "Resetting the password of", how, body, name)


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


add_show(user, _USER)
add_delete(user, _USER)


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
    body = {"database-name": name} | _given({"lc-collate": lc_collate, "lc-ctype": lc_ctype})
    _DATABASE.change("create-dbaas-pg-database", service, name, "Creating database", Waiting(wait, timeout), body)


@database.command("list")
def list_databases(service: Service, form: Form = None) -> None:
    """List the databases of a service, those that were made in SQL too."""
    found = _DATABASE.all(connect(), service)
    screen.show_rows(found, ("DATABASE",), [(name,) for name in found])


@database.command("show")
def show_database(service: Service, name: Database, form: Form = None) -> None:
    """Show a database and the pools that use it."""
    api = connect()
    found = _DATABASE.one(api, service, name)
    pools = [one["name"] for one in _POOL.all(api, service) if one["database"] == name]
    screen.show_facts(found | {"pools": pools}, [("Database", name), ("Pools", ", ".join(pools))])


add_delete(database, _DATABASE)


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
    body = {"name": name, "database-name": of} | _given({"mode": mode, "size": size, "username": username})
    _POOL.change("create-dbaas-pg-connection-pool", service, name, "Creating pool", Waiting(wait, timeout), body)


@pool.command("list")
def list_pools(service: Service, form: Form = None) -> None:
    """List the connection pools of a service."""
    found = _POOL.all(connect(), service)
    rows = [(one["name"], one["database"], one["mode"], one["size"], one["username"] or "(all)") for one in found]
    empty = f"There is no pool yet. Create one: pgherd pool create {service} mypool"
    screen.show_rows(found, ("POOL", "DATABASE", "MODE", "SIZE", "USER"), rows, empty)


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
    body = _given({"database-name": of, "mode": mode, "size": size, "username": username})
    if not body:
        raise CliError(Exit.USAGE, "Nothing to change.", "Say what: pgherd pool update --help")
    how = Waiting(wait, timeout)
    _POOL.change("update-dbaas-pg-connection-pool", service, name, "Changing pool", how, body, name)


add_show(pool, _POOL)
add_delete(pool, _POOL)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
