"""`pgherd up`, `down` and `restart`: each can be run at any time, also after an earlier one was killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pgherd.drivers.firewall import Firewall
from pgherd.drivers.limits import Limits
from pgherd.drivers.supervisor import Supervisor
from pgherd.errors import Incorrect, PgherdError
from pgherd.home import Home
from pgherd.instance import credentials, effective
from pgherd.instance.accounts import Accounts, accounts, ensure_accounts, run_as
from pgherd.instance.api_probe import ensure_port_free, wait_for_api, wait_for_host
from pgherd.instance.boot_unit import installed
from pgherd.instance.layout import ensure_layout
from pgherd.instance.leftovers import await_none
from pgherd.instance.metadata import NAME as METADATA
from pgherd.instance.metadata import Metadata
from pgherd.instance.platform_repository import PlatformRepository
from pgherd.instance.processes import NAMES, Fingerprint, services, supervisor_of
from pgherd.instance.programs import postgres_directory
from pgherd.instance.release import choose_release, remove_old_releases
from pgherd.settings import Settings, load, refuse_open_http

Say = Callable[[str], None]


def up(environ: Mapping[str, str], say: Say) -> Settings:
    """Bring the whole instance up and wait until its API answers; the settings that it runs with."""
    settings = load(dict(environ))
    home = Home(settings.root)
    refuse_open_http(settings)
    _refuse_lost_database(settings, home)
    for name in effective.unknown(environ):
        say(f"note: {name} is no setting of pgherd; `pgherd settings` lists them")
    try:
        postgres_directory(settings, settings.default_version)
    except Incorrect as error:
        say(f"warning: default_version: {error}")
    who = ensure_accounts()
    ensure_layout(home, who)
    with alone(home):
        release = choose_release(home)
        effective.remember(home, environ, who)
        _refuse_unreadable_key(settings, who)
        supervisor = supervisor_of(home, who)
        fingerprint = Fingerprint(home, release, settings, environ)
        differs = fingerprint.differs()
        cold = not supervisor.scanner_alive()
        _start_tree(settings, home, who, supervisor, environ)
        _prepare_database(settings, home, who, cold)
        _prepare_backups(settings, who, say)
        _start_processes(settings, supervisor, differs)
        wait_for_api(settings, supervisor)
        known = credentials.read(home.credentials)
        if not wait_for_host(settings, known["key"], known["secret"]):
            say(
                "warning: no host offers a version of PostgreSQL yet, so no service can be created: see `pgherd doctor`"
            )
        for name in NAMES:
            if supervisor.state(name).deaths:
                say(f"warning: {name} does not stay up; its log: {home.logs / name / 'current'}")
        fingerprint.store()
        remove_old_releases(home)
    return settings


def down(environ: Mapping[str, str], say: Say) -> Settings | None:
    """Stop everything, the services too, and wait for it; the data stays. None if nothing was ever started."""
    settings = effective.running(environ)
    home, who = Home(settings.root), accounts()
    if not home.scan.exists():
        say("nothing to stop: this instance was never started")
        return None
    with alone(home):
        supervisor = supervisor_of(home, who)
        supervisor.stop_scanner(first=NAMES, last=(METADATA,), wait=90)
        await_none(home, say)
        # The agent raises the walls again before it starts a service.
        Firewall(home.root).remove()
        Limits(home.root).remove_all()
    return settings


def restart(environ: Mapping[str, str], say: Say) -> None:
    """Start API, worker and agent anew; the services and the metadata go on."""
    settings = effective.running(environ)
    home, who = Home(settings.root), accounts()
    if not home.scan.exists():
        raise Incorrect("This instance is not running; start it with `make up`.")
    with alone(home):
        supervisor = supervisor_of(home, who)
        if not supervisor.scanner_alive():
            raise Incorrect("This instance is not running; start it with `make up`.")
        _restart_all(supervisor)
        wait_for_api(settings, supervisor)
        release = home.current.resolve()
        Fingerprint(home, release, settings, environ).store()


def _refuse_lost_database(settings: Settings, home: Home) -> None:
    """An `up` without the database URL that the last one had would start with empty metadata: all services gone."""
    if settings.database_url:
        if not settings.agent_database_url:
            raise Incorrect("Setting database_url needs agent_database_url too: how this host's agent logs in there.")
        return
    if "PGHERD_DATABASE_URL" in effective.remembered(home):
        raise Incorrect(
            "The last start was given PGHERD_DATABASE_URL and this one is not. Give it again or write it to"
            f" {home.config_file}; to begin with private metadata, remove {home.root}/settings.env first."
        )


def _refuse_unreadable_key(settings: Settings, who: Accounts) -> None:
    """The API runs as the control plane's user and must read its own certificate and key."""
    for path in filter(None, (settings.tls_certificate, settings.tls_key)):
        if run_as(who.control, ["test", "-r", path], check=False).returncode != 0:
            user = f" by the user {who.control}" if who.control else ""
            raise Incorrect(f"{path} (tls_certificate, tls_key) cannot be read{user}; allow it to.")


@contextlib.contextmanager
def alone(home: Home) -> Iterator[None]:
    """One `up`, `down`, `restart` or `platform restore` at a time; the next waits."""
    descriptor = os.open(home.root / ".lifecycle-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start_tree(
    settings: Settings, home: Home, who: Accounts, supervisor: Supervisor, environ: Mapping[str, str]
) -> None:
    """The scanner with all directories written, and the metadata server running."""
    if not supervisor.scanner_alive():
        # Services are started by the agent, few at a time; our own once prepared.
        for prefix in ("node-", "pool-", "export-", "job-", *NAMES):
            supervisor.mark_all_down(prefix)
    if not supervisor.state("api").up:
        ensure_port_free(settings)
    metadata, changed = None, False
    if not settings.database_url:
        from pgherd.store.bootstrap import host_login

        metadata = Metadata(settings, who, host_login(settings.host))
        changed = metadata.ensure_files()
        changed = supervisor.write(METADATA, metadata.service()) or changed
    for name, service in services(home, who, environ).items():
        supervisor.write(name, service)
    started = supervisor.ensure_scanner()
    supervisor.scan()
    if metadata is not None:
        if changed and not started and supervisor.state(METADATA).up:
            supervisor.restart(METADATA)
        metadata.ensure_running(supervisor)
    else:
        supervisor.down(METADATA)


def _prepare_database(settings: Settings, home: Home, who: Accounts, cold: bool) -> None:
    """Key file, schema and first rows, as the control plane's user; keeps the operator's key when one was made.

    `cold` says that nothing was running: what was observed before is not true any more.
    """
    argv = [str(home.current / "bin/pgherd"), "bootstrap"]
    if not home.credentials.exists():
        argv.append("--new-key")
    if cold:
        argv.append("--cold")
    done = run_as(who.control, argv, env={"PGHERD_HOME": str(home.root), "PYTHONSAFEPATH": "1", "HOME": str(home.root)})
    pair = json.loads(done.stdout or "null")
    credentials.write(home.credentials, settings, (pair[0], pair[1]) if pair else None)


def _prepare_backups(settings: Settings, who: Accounts, say: Say) -> None:
    """The private metadata can be backed up; that it cannot is no reason not to start."""
    if settings.database_url:
        return
    try:
        PlatformRepository(settings, who).ensure_configuration()
    except PgherdError as error:
        say(f"warning: the metadata is not backed up: {error}")


def _start_processes(settings: Settings, supervisor: Supervisor, differs: bool) -> None:
    if differs and any(supervisor.state(name).up for name in NAMES):
        _restart_all(supervisor)
        return
    for name in reversed(NAMES):
        supervisor.up(name)


def _restart_all(supervisor: Supervisor) -> None:
    with ThreadPoolExecutor(len(NAMES)) as pool:
        list(pool.map(supervisor.restart, NAMES))


def summary(settings: Settings, program: str) -> str:
    """What `up` says at its end."""
    home = Home(settings.root)
    kind, present = installed(home)
    at_boot = "at boot:      nothing starts it; `make boot-unit` changes that\n" if kind and not present else ""
    return (
        f"pgherd is up: {credentials.endpoint(settings)} (zone {settings.zone})\n"
        f"credentials:  {home.credentials}\n"
        f'next:         eval "$({program} env)"; {program} service create mydb --plan hobbyist-2\n'
        f"{at_boot}"
    )


def program_name() -> str:
    """How to call us, for the hints: the checkout's program when we stand in a checkout, else `pgherd`."""
    checkout = Path.cwd() / ".venv/bin/pgherd"
    return ".venv/bin/pgherd" if checkout.exists() else "pgherd"
