"""The commands about the instance on this machine: up, down, doctor and so on, as the server part offers them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import typer

from pgherd.cli import screen

PANEL = "This machine's instance"

Commands = dict[str, tuple[str, Callable[[list[str]], int]]]


def register(app: typer.Typer) -> None:
    """Add the commands to the app. A package without the server part has none."""
    groups: dict[str, typer.Typer] = {}
    for name, (help_text, function) in offered().items():
        first, _, second = name.partition(" ")
        target, panel = app, PANEL
        if second:
            if first not in groups:
                groups[first] = typer.Typer(no_args_is_help=True)
                app.add_typer(groups[first], name=first, rich_help_panel=PANEL, help=help_text)
            target, panel = groups[first], ""
        target.command(
            second or first,
            help=help_text,
            rich_help_panel=panel or None,
            add_help_option=False,
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_runner(function))


def offered() -> Commands:
    """The commands by name, with a help text and a function from arguments to an exit code."""
    try:
        commands: Commands = import_module("pgherd.instance.commands").COMMANDS
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("pgherd.instance"):
            raise
        return {}
    return commands


def _runner(function: Callable[[list[str]], int]) -> Callable[[typer.Context], None]:
    def run(ctx: typer.Context) -> None:
        form = ["-o", "json"] if screen.as_json() else []  # `pgherd -o json doctor`
        raise typer.Exit(function([*form, *ctx.args]))

    return run
