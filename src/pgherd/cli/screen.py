"""What a command prints: tables for people, plain columns for pipes, JSON for programs.

Results go to standard output; progress, hints and errors go to standard error. Everything that came from
the server may hold text of a tenant, so control characters are made visible before they reach a terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from pgherd.cli.outcome import CliError


class Format(StrEnum):
    """The forms of a result."""

    table = "table"
    json = "json"


_chosen = Format.table


def choose(value: Format | None) -> Format | None:
    """Remember what `-o` asked for; it may stand at any place of the command line."""
    global _chosen
    if value is not None:
        _chosen = value
    return value


def reset() -> None:
    """Forget an earlier choice (one process may run several commands in tests)."""
    choose(Format.table)


def as_json() -> bool:
    """Whether the result is for a program."""
    return _chosen is Format.json


#: The option `-o` as every command and group declares it.
Form = Annotated[
    Format | None,
    typer.Option("-o", "--output", help="Form of the result.", callback=choose, show_default="table"),
]

_COLOURS = {
    "running": "green", "success": "green",
    "rebuilding": "yellow", "rebalancing": "yellow", "pending": "yellow", "setting_up_vm": "yellow",
    "syncing_data": "yellow",
    "poweroff": "red", "failure": "red", "timeout": "red", "unknown": "red",
}  # fmt: skip


def visible(value: object) -> str:
    """One line of text in which no character steers a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda m: f"\\x{ord(m[0]):02x}", str(value))


def print_json(value: Any) -> None:
    """Print a result for a program."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=not sys.stdout.encoding.lower().startswith("utf")))


def show_rows(result: Any, headers: Sequence[str], rows: Sequence[Sequence[object]], empty: str = "") -> None:
    """Print a list: `result` as JSON, or the rows under their headers; `empty` is the hint when there are none."""
    if as_json():
        print_json(result)
    elif not rows and empty:
        note(empty)
    elif sys.stdout.isatty():
        _print_rich(headers, rows)
    else:
        typer.echo(render_columns([headers, *rows]))


def show_facts(result: Any, facts: Sequence[tuple[str, object]]) -> None:
    """Print one thing: `result` as JSON, or its facts; empty facts are left out, lists take a line each."""
    if as_json():
        print_json(result)
        return
    rows = fact_rows(facts)
    if sys.stdout.isatty():
        _print_rich(None, rows)
    else:
        typer.echo(render_columns(rows))


def fact_rows(facts: Sequence[tuple[str, object]]) -> list[tuple[str, str]]:
    """Facts as lines of name and value; the lines of one fact share the name of the first."""
    rows = []
    for name, value in facts:
        lines = value if isinstance(value, list | tuple) else [value]
        kept = [line for line in lines if line not in (None, "")]
        rows += [(name if i == 0 else "", visible(line)) for i, line in enumerate(kept)]
    return rows


def render_columns(rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned columns, two blanks apart, without trailing blanks."""
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _print_rich(headers: Sequence[str] | None, rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=headers is not None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for index, header in enumerate(headers or rows[0]):
        table.add_column(visible(header), style="bold" if headers is None and index == 0 else "", overflow="fold")
    for row in rows:
        cells = [visible(cell) for cell in row]
        table.add_row(*(Text(cell, style=_COLOURS.get(cell.split(" ")[0], "")) for cell in cells))
    Console(highlight=False).print(table)


def note(text: str) -> None:
    """Say something to a person, beside the result."""
    typer.echo(visible(text), err=True)


def next_steps(*lines: str) -> None:
    """Tell a person at a terminal what to type next; programs and pipes do not see it."""
    if sys.stderr.isatty() and not as_json():
        typer.secho("\n".join(["", "Next:", *(f"  {visible(line)}" for line in lines)]), err=True, dim=True)


def print_error(error: CliError) -> None:
    """Print an error and what to do about it, on standard error."""
    colour = sys.stderr.isatty()
    typer.echo(typer.style("error: ", fg="red", bold=True) if colour else "error: ", err=True, nl=False)
    typer.echo(visible(error.message), err=True)
    if error.hint:
        typer.echo(visible(error.hint), err=True)
