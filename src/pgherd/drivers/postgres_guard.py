"""Read-only by default: the part of a cluster's configuration that is switched when the disk runs full.

It lies in a file of its own beside postgresql.conf, so that it can be switched by a reload, whatever else happens to
the node, and stays as it is while no agent lives. New transactions of sessions that run already are read-only too. A
session that sets `default_transaction_read_only` to off may write, to delete.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FILE = "guard.conf"
#: A parameter of our own that tells which guard the server has loaded.
MARKER = "pgherd.guard"
_SPILL = 8 << 20  # bytes of a temporary file from which on its query is one that fills the disk


@dataclass(frozen=True)
class Guard:
    """`why`: empty (none), `plan` or `host`. `since`: when it was set, in seconds of the epoch."""

    why: str = ""
    since: int = 0

    @property
    def word(self) -> str:
        """The value of the marker."""
        return f"{self.why} {self.since}" if self.why else ""


def parse(text: str) -> Guard:
    """The guard that a file sets."""
    found = re.search(rf"^{re.escape(MARKER)} = '(plan|host) (\d+)'$", text, re.MULTILINE)
    return Guard(found[1], int(found[2])) if found else Guard()


def render(guard: Guard) -> str:
    """The file; the server has it after a reload."""
    return "\n".join(_lines(guard)) + "\n"


def _lines(guard: Guard) -> Iterator[str]:
    yield "# Written by pgherd; changes are overwritten."
    if guard.why:
        yield "default_transaction_read_only = on"
    yield f"{MARKER} = '{guard.word}'"


def looking() -> str:
    """SQL for the word of the guard that the running server has."""
    return f"SELECT coalesce(current_setting('{MARKER}', true), '');"


def ending_writers(began_before: float) -> str:
    """SQL that ends sessions which have written, or sorted on disk, in a transaction that began before; how many."""
    return f"""
    SELECT count(pg_terminate_backend(pid)) FROM (SELECT DISTINCT coalesce(a.leader_pid, a.pid) AS pid
      FROM pg_stat_activity a LEFT JOIN pg_ls_tmpdir() t ON a.pid = substring(t.name FROM '^pgsql_tmp([0-9]+)')::int
     WHERE a.backend_type IN ('client backend', 'parallel worker') AND a.xact_start < to_timestamp({began_before:.3f})
       AND NOT EXISTS (SELECT FROM pg_authid WHERE oid = a.usesysid AND rolsuper)
       AND (a.backend_xid IS NOT NULL OR t.size > {_SPILL})) w;
    """
