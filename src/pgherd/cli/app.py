"""The program `pgherd`: all commands, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pgherd.cli import access, backups, host, instance, operation, platform, screen, service, terraform_front
from pgherd.cli.extensions import list_extensions
from pgherd.cli.help_text import Grouped
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.screen import Form
from pgherd.errors import PgherdError


def build() -> typer.Typer:
    """The app with all its commands."""
    app = typer.Typer(
        name="pgherd",
        cls=Grouped,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_root)
    services = "Services"
    app.add_typer(service.app, name="service", cls=Grouped, rich_help_panel=services)
    app.add_typer(access.user, name="user", cls=Grouped, rich_help_panel=services)
    app.add_typer(access.database, name="database", cls=Grouped, rich_help_panel=services)
    app.add_typer(access.pool, name="pool", cls=Grouped, rich_help_panel=services)
    app.add_typer(backups.app, name="backup", cls=Grouped, rich_help_panel=services)
    app.add_typer(operation.app, name="operation", cls=Grouped, rich_help_panel=services)
    app.command("api", rich_help_panel=services)(operation.call)
    app.command("extensions", rich_help_panel=services)(list_extensions)
    keys = "Organizations and access"
    app.add_typer(platform.org, name="org", cls=Grouped, rich_help_panel=keys)
    app.add_typer(platform.key, name="key", cls=Grouped, rich_help_panel=keys)
    app.add_typer(host.app, name="host", cls=Grouped, rich_help_panel=keys)
    app.command("events", rich_help_panel=keys)(platform.events)
    app.command("terraform-front", rich_help_panel="Other clients")(terraform_front.run)
    instance.register(app)
    return app


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    form: Form = None,
) -> None:
    """Managed PostgreSQL that you run yourself, behind the Exoscale DBaaS API."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"pgherd {installed('pgherd')}")
    elif ctx.invoked_subcommand is None:
        from pgherd.cli.welcome import welcome

        welcome()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (see docs/cli.md)."""
    screen.reset()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        build()(args=arguments, prog_name="pgherd")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except CliError as error:
        screen.print_error(error)
        return error.code
    except PgherdError as error:
        screen.print_error(CliError(Exit.FAILED, error.message))
        return Exit.FAILED
    return Exit.OK
