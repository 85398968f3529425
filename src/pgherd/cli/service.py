"""`pgherd service`: create, look at, change, use and delete PostgreSQL services."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pgherd.cli import describe, restores, screen, telemetry
from pgherd.cli.body import create_body, update_body
from pgherd.cli.client import Api, connect
from pgherd.cli.complete import plans, services, versions
from pgherd.cli.options import (
    AdminPassword,
    AdminUsername,
    BackupHour,
    BackupMinute,
    ClearIpFilter,
    IpFilter,
    MaintenanceDow,
    MaintenanceTime,
    PgauditSetting,
    PgbouncerSetting,
    PglookoutSetting,
    PgSetting,
    Protection,
    Replication,
    SharedBuffers,
    Timeout,
    TimescaledbSetting,
    Variant,
    Wait,
    WorkMem,
)
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.screen import Form

app = typer.Typer(no_args_is_help=True, help="PostgreSQL services: create, list, show, update, delete, use.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the service.", autocompletion=services)]


app.command("restore")(restores.restore)
app.command("undelete")(restores.undelete)


@app.callback()
def group(form: Form = None) -> None:
    """PostgreSQL services: create, list, show, update, delete, use."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new service.")],
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan, such as hobbyist-2 or startup-4; `pgherd service plans` lists them. Of a fork: as its source.",
            autocompletion=plans,
            show_default=False,
        ),
    ] = None,
    version: Annotated[str | None, typer.Option(help="PostgreSQL major version.", autocompletion=versions)] = None,
    fork_from: Annotated[
        str | None,
        typer.Option("--fork-from", metavar="SERVICE", help="Begin with this service's data.", autocompletion=services),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TIME", help="With --fork-from: its data of then, ISO 8601; UTC without an offset."
        ),
    ] = None,
    admin_username: AdminUsername = None,
    admin_password: AdminPassword = None,
    ip_filter: IpFilter = None,
    termination_protection: Protection = None,
    maintenance_dow: MaintenanceDow = None,
    maintenance_time: MaintenanceTime = None,
    backup_hour: BackupHour = None,
    backup_minute: BackupMinute = None,
    work_mem: WorkMem = None,
    shared_buffers_percentage: SharedBuffers = None,
    pg_setting: PgSetting = None,
    pgbouncer_setting: PgbouncerSetting = None,
    pgaudit_setting: PgauditSetting = None,
    pglookout_setting: PglookoutSetting = None,
    timescaledb_setting: TimescaledbSetting = None,
    variant: Variant = None,
    synchronous_replication: Replication = None,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Create a service and wait until it can be used."""
    wish = dict(locals())
    api = connect()
    operation = _send(api, "create-dbaas-service-pg", name, create_body(api, wish))
    _end(api, operation, name, "Creating", wait, timeout)


@app.command("list")
def list_services(form: Form = None) -> None:
    """List the services of your organization."""
    answer = connect().call("list-dbaas-services")
    found = answer["dbaas-services"]
    rows = describe.service_rows(found, datetime.now(UTC))
    empty = "There is no service yet. Create one: pgherd service create demo --plan hobbyist-2"
    screen.show_rows(found, describe.SERVICE_HEADERS, rows, empty)


@app.command("plans")
def list_plans(form: Form = None) -> None:
    """List the plans, with the size of each of their nodes."""
    found = connect().call("get-dbaas-service-type", "pg")["plans"]
    screen.show_rows(found, describe.PLAN_HEADERS, [describe.plan_row(plan) for plan in found])


@app.command()
def show(
    name: Name,
    uri: Annotated[bool, typer.Option("--uri", help="Print only the URI, with the password in it.")] = False,
    form: Form = None,
) -> None:
    """Show a service: state and reason, address, settings."""
    api = connect()
    service = api.call("get-dbaas-service-pg", name)
    if not uri:
        _show(service)
        return
    if not service.get("uri"):
        hint = f"Wait for it: pgherd service wait {name}"
        raise CliError(Exit.FAILED, f"{name} has no URI yet; its state is {service.get('state')}.", hint)
    user = (service.get("uri-params") or {}).get("user") or "avnadmin"
    password = api.call("reveal-dbaas-postgres-user-password", name, user)["password"]
    full = describe.with_password(service["uri"], password)
    if screen.as_json():
        screen.print_json({"uri": full})
    else:
        typer.echo(full)


@app.command()
def update(
    name: Name,
    plan: Annotated[str | None, typer.Option(help="Another plan.", autocompletion=plans)] = None,
    version: Annotated[str | None, typer.Option(help="PostgreSQL version.", autocompletion=versions)] = None,
    ip_filter: IpFilter = None,
    clear_ip_filter: ClearIpFilter = False,
    termination_protection: Protection = None,
    maintenance_dow: MaintenanceDow = None,
    maintenance_time: MaintenanceTime = None,
    backup_hour: BackupHour = None,
    backup_minute: BackupMinute = None,
    work_mem: WorkMem = None,
    shared_buffers_percentage: SharedBuffers = None,
    pg_setting: PgSetting = None,
    pgbouncer_setting: PgbouncerSetting = None,
    pgaudit_setting: PgauditSetting = None,
    pglookout_setting: PglookoutSetting = None,
    timescaledb_setting: TimescaledbSetting = None,
    variant: Variant = None,
    synchronous_replication: Replication = None,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Change what you name of a service; the rest stays as it is."""
    wish = dict(locals())
    api = connect()
    operation = _send(api, "update-dbaas-service-pg", name, update_body(api, wish))
    _end(api, operation, name, "Updating", wait, timeout)


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    form: Form = None,
) -> None:
    """Delete a service with all its data."""
    if not yes:
        if not sys.stdin.isatty():
            raise CliError(Exit.USAGE, f"Deleting {name} deletes its data, and there is nobody to ask.", "Say --yes.")
        typer.confirm(f"Delete service {name} with all its data?", abort=True, err=True)
    api = connect()
    operation = _send(api, "delete-dbaas-service", name, None)
    _end(api, operation, name, "Deleting", wait, timeout, gone=True)


@app.command()
def stop(name: Name, wait: Wait = True, timeout: Timeout = None, form: Form = None) -> None:
    """Stop a service; its data, address and place on the host stay, and `start` brings it back."""
    api = connect()
    operation = _turn(api, name, "stop")
    _end(api, operation, name, "Stopping", wait, timeout, then=(f"pgherd service start {name}",))


@app.command()
def start(name: Name, wait: Wait = True, timeout: Timeout = None, form: Form = None) -> None:
    """Start a service that was stopped."""
    api = connect()
    operation = _turn(api, name, "start")
    _end(api, operation, name, "Starting", wait, timeout)


@app.command()
def maintenance(name: Name, wait: Wait = True, timeout: Timeout = None, form: Form = None) -> None:
    """Install the updates that wait (`show` lists them) now instead of in the maintenance window."""
    api = connect()
    operation = _send(api, "start-dbaas-pg-maintenance", name, None)
    _end(api, operation, name, "Maintaining", wait, timeout)


@app.command("wait")
def wait_for(
    name: Name,
    state: Annotated[str, typer.Option(help="State to wait for: running, another state, or deleted.")] = "running",
    timeout: Timeout = 600.0,
    form: Form = None,
) -> None:
    """Wait until a service has a state, or is deleted."""
    from pgherd.cli.waiting import until_service_is

    service = until_service_is(connect(), name, state, timeout)
    if screen.as_json():
        screen.print_json(service or {"name": name, "state": "deleted"})
    else:
        screen.note(f"{name} is {state}.")


@app.command(context_settings={"ignore_unknown_options": True})
def psql(
    name: Name,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGS", help="Arguments for psql, as in -- -c 'SELECT 1'.")
    ] = None,
    user: Annotated[str, typer.Option("--user", help="User to log in as; the admin if not given.")] = "",
    database: Annotated[str, typer.Option("--database", help="Database; the default one if not given.")] = "",
    pool: Annotated[str, typer.Option("--pool", help="Connect through this connection pool.")] = "",
    form: Form = None,
) -> None:
    """Open psql on a service, as its admin, over verified TLS.

    The password is revealed for you and never shown. It ends with psql's own exit code.
    """
    from pgherd.cli.psql import start

    start(connect(), name, user, database, pool, arguments or [])


app.command("logs")(telemetry.logs)
app.command("metrics")(telemetry.metrics)
app.command("prometheus")(telemetry.prometheus)


def _send(api: Api, operation_id: str, name: str, body: dict[str, Any] | None) -> dict[str, Any]:
    from pgherd.cli.waiting import sending

    with sending(name):
        return dict(api.call(operation_id, name, body=body))


def _turn(api: Api, name: str, how: str) -> dict[str, Any]:
    from pgherd.cli.waiting import sending

    with sending(name):
        return dict(api.own("PUT", "service", name, how))


def _end(
    api: Api,
    operation: dict[str, Any],
    name: str,
    verb: str,
    wait: bool,
    timeout: float | None,
    gone: bool = False,
    then: Sequence[str] = (),
) -> None:
    """Wait if asked to, and print what came of it, the service or the operation, and what to do `then`."""
    from pgherd.cli.waiting import until_operation_ends

    if not wait:
        screen.show_facts(operation, describe.operation_facts(operation))
        screen.next_steps(f"pgherd operation show {operation['id']} --wait")
        return
    watched = "" if gone else name
    operation = until_operation_ends(api, operation, f"{verb} {name}", service=watched, timeout=timeout)
    if not gone:
        _show(api.call("get-dbaas-service-pg", name))
        screen.next_steps(*(then or (f"pgherd service psql {name}", f"pgherd service show {name} --uri")))
    elif screen.as_json():
        screen.print_json(operation)
    else:
        screen.note(f"{name} is deleted.")


def _show(service: dict[str, Any]) -> None:
    screen.show_facts(service, describe.service_facts(service, datetime.now(UTC)))
