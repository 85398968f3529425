"""Help in plain text, commands in sections. Rich's panels import slowly and squeeze option names at 80 columns."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

#: Longer than any: a command's first sentence stands as a whole, on more lines than one if need be.
_WHOLE = 1000


class Grouped(TyperGroup):
    """A group whose help lists its commands under the titles that they name as their panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section of commands for each title, in the order of their first command."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in sorted(self.commands.items(), key=lambda item: not isinstance(item[1], TyperGroup)):
            if not command.hidden:
                title = getattr(command, "rich_help_panel", None) or "Commands"
                sections.setdefault(title, []).append((name, command.get_short_help_str(_WHOLE)))
        width = max((len(name) for name in self.commands), default=0)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])
