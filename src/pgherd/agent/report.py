"""What the agent says: of a node that does not run, why; of the host, what it is and has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pgherd.drivers import exporter, extensions, postgres, postgres_settings
from pgherd.drivers.postgres import Program
from pgherd.errors import PgherdError
from pgherd.spec import HostFacts

_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp
_AUDIT = [name for name in postgres_settings.ALLOWED if name.startswith("pgaudit.")]
_MOST = 300  # characters of a reason


def now() -> str:
    """The time, in UTC, as RFC 3339 says it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clean(text: str, home: Path) -> str:
    """One line that may be shown to a tenant: bounded, printable, without the host's paths."""
    text = re.sub(rf"{re.escape(str(home))}[^\s\"':,]*/", "", text)
    text = re.sub(r"[^\x21-\x7e\u00a1-\uffff]+", " ", text).strip()
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"


def describe(error: BaseException, home: Path) -> str:
    """The reason that an error gives."""
    if isinstance(error, PgherdError):
        return clean(str(error), home)
    return clean(f"{type(error).__name__}: {error}", home)


def last_words(lines: Iterable[str], home: Path) -> str:
    """The last FATAL or PANIC of the server itself (a client's carries its user), else what the program said last."""
    last = fatal = ""
    for line in lines:
        # s6-log writes a time before each line, PostgreSQL another one with its pid.
        line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\s+", "", line)
        # Before its log is open, a program says its name and then as many lines as it likes.
        last = line.strip() if re.match(r"\w+: |.*\bLOG: ", line) else f"{last} {line.strip()}"
        if (found := re.search(r"\b(?:FATAL|PANIC): .*", line)) and not re.search(r"user=\w", line[: found.start()]):
            fatal = found[0]
    return clean(fatal or last, home)


def listening_ports() -> set[int]:
    """TCP ports that anything on this host listens on."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as rows:
                next(rows)
                fields = (row.split(None, 4) for row in rows)
                ports |= {int(f[1].rsplit(":", 1)[1], 16) for f in fields if f[3] == _LISTENING}
        except OSError:
            continue
    return ports


def facts(programs: dict[str, Program], found: exporter.Program | None, pooler: str, own_ports: set[int]) -> HostFacts:
    """What the host is and has; `own_ports` are the nodes' own and not listed as others' listeners."""
    return HostFacts(
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=os.cpu_count() or 1,
        versions={major: program.version for major, program in programs.items()},
        listeners=sorted(listening_ports() - own_ports),
        rooted=os.geteuid() == 0,
        extensions={major: extensions.installed(major, program.control_files) for major, program in programs.items()},
        audit={major: program.audit_parameters(_AUDIT) for major, program in programs.items()},
        exporter=found.version if found else "",
        pooler=pooler,
        locales=postgres.locales(),
    )
