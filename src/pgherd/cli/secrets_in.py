"""Passwords on their way in: from standard input, a file or a variable; an argument is visible to other users."""

from __future__ import annotations

import os
import sys

import typer

from pgherd.cli.outcome import CliError, Exit


def read_secret(source: str, what: str) -> str:
    """The secret that a source names: `-`, `@FILE` or `env:NAME`. At a terminal `-` asks without echo.

    Raises CliError when the source holds none, or is the secret itself.
    """
    if source == "-":
        if sys.stdin.isatty():
            return str(typer.prompt(what, hide_input=True, confirmation_prompt=True, err=True))
        return _line(sys.stdin.readline(), "standard input")
    if source.startswith("@"):
        try:
            with open(source[1:], encoding="utf-8") as file:
                return _line(file.readline(), source[1:])
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(Exit.USAGE, f"Cannot read the {what.lower()}: {error}.") from None
    if source.startswith("env:"):
        return _line(os.environ.get(source[4:], ""), f"the variable {source[4:]}")
    raise CliError(
        Exit.USAGE,
        f"The {what.lower()} itself may not stand on the command line, where other users can see it.",
        "Give - to be asked (or for standard input), @FILE, or env:NAME.",
    )


def _line(text: str, origin: str) -> str:
    line = text.rstrip("\r\n")
    if not line:
        raise CliError(Exit.USAGE, f"There is no password in {origin}.")
    return line
