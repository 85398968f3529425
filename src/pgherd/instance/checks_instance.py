"""`pgherd doctor`: the instance itself, its processes, files and API."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pgherd.drivers import pgbackrest
from pgherd.drivers.supervisor import Supervisor
from pgherd.errors import PgherdError
from pgherd.home import Home
from pgherd.instance import credentials, effective
from pgherd.instance.accounts import Accounts, ids
from pgherd.instance.api_probe import api_answers, ensure_port_free, key_works, unknown_nodes
from pgherd.instance.boot_unit import installed
from pgherd.instance.findings import Finding
from pgherd.instance.keys import mark_of
from pgherd.instance.metadata import NAME as METADATA
from pgherd.instance.platform_repository import PlatformRepository
from pgherd.instance.processes import NAMES
from pgherd.settings import Settings, refuse_open_http

_AS_OWNER = "Run doctor as the user of `make up`."


def settings_in_force(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that mean nothing, and settings that `up` would refuse."""
    for name in effective.unknown(environ):
        yield Finding("warning", "settings", f"{name} is no setting", "`pgherd settings` lists them.")
    try:
        refuse_open_http(settings)
    except PgherdError as error:
        yield Finding("broken", "settings", str(error), "The message says how.")


def processes(settings: Settings, home: Home, supervisor: Supervisor) -> Iterator[Finding]:
    """The supervision tree and what it says of each process."""
    if not home.scan.exists():
        yield Finding("note", "instance", "was never started", "Run `make up`.")
        return
    if not supervisor.scanner_alive():
        yield Finding("broken", "s6", "does not run: the instance is down", "Start it with `make up`.")
        return
    yield Finding("ok", "s6", f"serves {home.scan}")
    for name in (*NAMES, *(() if settings.database_url else (METADATA,))):
        state = supervisor.state(name)
        log = home.logs / name / "current"
        if not state.up:
            yield Finding("broken", name, f"does not run ({state.deaths} ends so far)", f"Read {log}, then `make up`.")
        elif state.waiting:
            yield Finding("note", name, "runs since before its supervisor was killed; the next one waits for its end")
        elif state.deaths:
            yield Finding(
                "warning", name, f"runs for {state.since} s, ended {state.deaths} times before", f"Read {log}."
            )
        else:
            yield Finding("ok", name, f"runs for {state.since} s")
    yield from _nodes(home, supervisor)


def _nodes(home: Home, supervisor: Supervisor) -> Iterator[Finding]:
    names = [n for n in supervisor.names() if n.startswith("node-")]
    logs = f"{home.logs}/node-*"
    states = {n: supervisor.state(n) for n in names}
    troubled = [n for n, s in states.items() if s.wanted and (not s.up or s.deaths > 2)]
    if troubled:
        yield Finding(
            "warning",
            "services",
            f"{len(troubled)} of {len(names)} do not stay up: {', '.join(troubled[:5])}",
            f"`pgherd service show NAME` gives the reason; logs: {logs}",
        )
    else:
        yield Finding("ok", "services", f"{sum(s.up for s in states.values())} of {len(names)} nodes run")


def api(settings: Settings, supervisor: Supervisor) -> Iterator[Finding]:
    """Whether the API answers, or its port is free for it."""
    if api_answers(settings):
        yield Finding("ok", "api", f"answers on {settings.listen}")
    elif supervisor.state("api").up:
        yield Finding(
            "broken", "api", f"runs and does not answer on {settings.listen}", "Read its log; `pgherd restart`."
        )
    else:
        try:
            ensure_port_free(settings)
            yield Finding("note", "api", f"does not run; {settings.listen} is free", "Start it with `make up`.")
        except PgherdError as error:
            yield Finding("broken", "api", str(error), "Stop the other program, or choose another address.")


def files(settings: Settings, home: Home, who: Accounts) -> Iterator[Finding]:
    """Owners and modes of what must stay secret."""
    control = ids(who.control)
    me = os.geteuid()
    for path, owners, forbidden in (
        (home.credentials, {me}, 0o077),
        (home.secrets, {control[0]}, 0o077),
        (home.secrets / "keys.toml", {control[0]}, 0o077),
        (home.root / "settings.env", {me}, 0o037),
        (home.agent, {me}, 0o077),
    ):
        yield from _mode(path, owners, forbidden)
    if settings.database_url and home.config_file.exists() and "database_url" in home.config_file.read_text():
        yield from _mode(home.config_file, {me}, 0o037)
    if home.credentials.exists():
        try:
            found = credentials.read(home.credentials)
            if found["endpoint"] != credentials.endpoint(settings):
                yield Finding("warning", "credentials", f"name {found['endpoint']}", "`make up` corrects it.")
            if not key_works(settings, found["key"], found["secret"]):
                hint = f"Remove {home.credentials} and run `make up`: it makes a new key."
                yield Finding("broken", "credentials", "the API refuses the key in them", hint)
            elif unknown := unknown_nodes(settings, found["key"], found["secret"]):
                hint = "See `pgherd host list`, then `pgherd host adopt` or `pgherd host forget` each."
                yield Finding("warning", "nodes", f"{unknown} run that the metadata does not know", hint)
        except PgherdError as error:
            yield Finding("broken", "credentials", str(error), "The message says how.")


def backups(home: Home) -> Iterator[Finding]:
    """Whether every repository takes what it is given; what the agent observed last."""
    troubled, count = [], 0
    for path in home.backups.glob("*/record.json"):
        try:
            status = json.loads(path.read_text()).get("status") or {}
        except (OSError, ValueError):
            continue
        count += 1
        troubled += [f"{path.parent.name}: {status[name]}" for name in ("problem", "lost") if status.get(name)]
        damaged = [backup["name"] for backup in status.get("backups", []) if backup.get("damaged")]
        if damaged:
            troubled.append(f"{path.parent.name}: backup {damaged[-1]} met pages with a wrong checksum")
    if troubled:
        hint = "Segments wait meanwhile; see docs/backups.md. The names are services' ids."
        yield Finding("warning", "backups", f"{len(troubled)} of {count} in trouble: {'; '.join(troubled[:3])}", hint)
    elif count:
        yield Finding("ok", "backups", f"{count} repositories take what they are given")


def metadata_backups(settings: Settings, who: Accounts) -> Iterator[Finding]:
    """Whether the private metadata is backed up."""
    if settings.database_url:
        return
    repository = PlatformRepository(settings, who)
    if repository.program is None:
        yield Finding("warning", "metadata backups", "pgBackRest is not installed", "`make up` installs it.")
        return
    try:
        found = repository.info().backups if (repository.config / pgbackrest.READY).exists() else []
    except PgherdError as error:
        yield Finding("broken", "metadata backups", str(error), "The message says why; see also the agent's log.")
        return
    age = datetime.now(UTC) - datetime.fromisoformat(found[-1].ended_at) if found else None
    if age is None:
        yield Finding("note", "metadata backups", "there is none yet; the first follows a minute after the start")
    elif age > timedelta(days=2):
        hint = f"Read {repository.home.logs}/agent/current; try `pgherd platform backup`."
        yield Finding("warning", "metadata backups", f"the newest is {age.days} days old", hint)
    else:
        yield Finding("ok", "metadata backups", f"{len(found)}, the newest of {found[-1].ended_at}")


def exported_keys(home: Home) -> Iterator[Finding]:
    """Whether the keys that are in use lie somewhere else too."""
    try:
        content = (home.secrets / "keys.toml").read_bytes()
    except OSError:
        return
    try:
        known = mark_of(home).read_text().strip()
    except FileNotFoundError:
        known = ""
    if known == hashlib.sha256(content).hexdigest():
        yield Finding("ok", "keys", "were exported since they changed last")
        return
    since = "have changed since they were exported" if known else "were never exported"
    hint = "Run: pgherd secrets export FILE, and keep the file away from this machine."
    yield Finding("warning", "keys", f"{since}: if this machine is lost, every backup is worthless", hint)


def _mode(path: Path, owners: set[int], forbidden: int) -> Iterator[Finding]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except PermissionError:
        yield Finding("note", "files", f"{path} cannot be looked at by this user", _AS_OWNER)
        return
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in owners:
        yield Finding("broken", "files", f"{path} belongs to user id {found.st_uid}", "`make up` corrects owners.")
    elif mode & forbidden:
        yield Finding("broken", "files", f"{path} has mode {mode:04o}", f"Run: chmod {mode & ~forbidden:04o} {path}")
    else:
        yield Finding("ok", "files", f"{path} is private")


def boot(home: Home) -> Iterator[Finding]:
    """Whether the instance starts with the machine."""
    kind, present = installed(home)
    if kind is None:
        yield Finding(
            "note",
            "boot",
            "no init system here that pgherd knows",
            f"At boot run: {home.current}/bin/pgherd up --as-before",
        )
    elif present:
        yield Finding("ok", "boot", f"starts with the machine ({kind})")
    else:
        yield Finding("note", "boot", "does not start with the machine", "`make boot-unit` installs a boot unit.")


def node_ports(home: Home) -> set[int]:
    """Ports of this instance's own services; empty when this user may not read the agent's files."""
    found = set()
    for path in (home.agent / "specs").glob("*.json"):
        try:
            port = int(json.loads(path.read_text())["spec"]["port"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found |= set(range(port, port + 4))
    return found
