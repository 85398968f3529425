"""`pgherd doctor`: look at everything, say what was seen and what to do; exit code 1 when something is broken."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping

from pgherd.errors import PgherdError
from pgherd.home import Home
from pgherd.instance import checks_instance, checks_machine, checks_walls, effective
from pgherd.instance.accounts import accounts
from pgherd.instance.findings import Finding
from pgherd.instance.processes import supervisor_of
from pgherd.settings import Settings

_MARKS = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "broken": "BROKEN "}


def run(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print all findings; 1 when one is `broken`, else 0."""
    found = list(findings(environ))
    if as_json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=2))
    else:
        for f in found:
            print(f"{_MARKS[f.level]}  {f.what}: {f.seen}")
            if f.todo:
                print(f"           -> {f.todo}")
    return 1 if any(f.level == "broken" for f in found) else 0


def findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that can be looked at; unreadable settings end it early."""
    try:
        settings = effective.running(environ)
    except PgherdError as error:
        yield Finding("broken", "settings", str(error), "Correct it; nothing else can be checked before.")
        yield from checks_machine.privileges()
        return
    yield from _of(settings, Home(settings.root), environ)


def _of(settings: Settings, home: Home, environ: Mapping[str, str]) -> Iterator[Finding]:
    who = accounts()
    supervisor = supervisor_of(home, who)
    yield from checks_machine.privileges()
    yield from checks_machine.programs(settings)
    yield from checks_machine.guards(settings)
    yield from checks_machine.pooler(settings)
    yield from checks_machine.monitoring(settings)
    yield from checks_machine.archiver(settings)
    yield from checks_machine.locale()
    yield from checks_machine.clock(home)
    yield from checks_machine.disk(home)
    yield from checks_machine.paths(home)
    yield from checks_machine.hostname(settings)
    yield from checks_instance.settings_in_force(settings, environ)
    try:
        yield from checks_instance.processes(settings, home, supervisor)
        yield from checks_instance.api(settings, supervisor)
        yield from checks_machine.ports(settings, checks_instance.node_ports(home))
        yield from checks_instance.files(settings, home, who)
        yield from checks_instance.exported_keys(home)
        yield from checks_instance.metadata_backups(settings, who)
        yield from checks_instance.backups(home)
        yield from checks_walls.firewall(home, checks_instance.node_ports(home))
        yield from checks_walls.limits(home, supervisor)
    except (PermissionError, PgherdError, KeyError) as error:
        yield Finding("warning", "instance", f"cannot be looked at: {error}", "Run doctor as the user of `make up`.")
    yield from checks_instance.boot(home)
