"""`pgherd platform`: back the private metadata up, see what there is, and restore it.

A restore makes the new cluster aside and puts it in place by renames that the next start finishes, so that it can be
killed anywhere. Services run on meanwhile; only API and worker stop.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pgherd import failpoints
from pgherd.drivers import limits, pgbackrest
from pgherd.errors import HostFault, Incorrect
from pgherd.instance import effective, lifecycle
from pgherd.instance.accounts import accounts, ids, run_as
from pgherd.instance.layout import write_file
from pgherd.instance.metadata import NAME as METADATA
from pgherd.instance.metadata import RESTORING, SWAPPING, finish_swap
from pgherd.instance.platform_repository import PlatformRepository
from pgherd.instance.processes import NAMES, supervisor_of
from pgherd.instance.programs import postgres_directory

_PATIENCE = 3600.0  # seconds that recovery may take
_PORT = 1  # of the server that recovers: only a name


def backup(environ: Mapping[str, str]) -> int:
    """Back up now."""
    repository = _repository(environ)
    if not supervisor_of(repository.home, repository.who).state(METADATA).up:
        raise Incorrect("The metadata server is not running; start the instance with `make up`.")
    repository.ensure_configuration()
    repository.ensure_made()
    program = repository.installed()
    repository.run(pgbackrest.backup(program, repository.config, full=not repository.info().backups, fast=True))
    return status(environ, as_json=False)


def status(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Show the backups of the metadata, and to which times it can be restored."""
    repository = _repository(environ)
    ready = (repository.config / pgbackrest.READY).exists()
    info = repository.info() if ready else None
    backups = info.backups if info else []
    last = _archived_at(repository) if ready else ""
    if as_json:
        found = [{"name": b.name, "time": b.ended_at, "size": b.size, "full": not b.parent} for b in backups]
        print(json.dumps({"ready": ready, "backups": found, "archived-at": last}, indent=2))
        return 0
    for one in backups:
        print(f"{one.name}  {one.ended_at}  {'incremental' if one.parent else 'full':12}{one.size >> 20:8} MiB")
    if not backups:
        print("The metadata has no backup yet; the first follows a minute after the start, or: pgherd platform backup")
        return 0
    print(f"Can be restored to any time from {backups[0].ended_at} to {max(last, backups[-1].ended_at)}.")
    return 0


def restore(environ: Mapping[str, str], to: str) -> int:
    """Put the metadata back to `to`, or to the end of the archive. An instance that runs is started again after."""
    target = _target(to)
    repository = _repository(environ)
    home, who = repository.home, repository.who
    repository.ensure_configuration()
    supervisor = supervisor_of(home, who)
    running = supervisor.scanner_alive()
    failpoints.name_process("platform")
    with lifecycle.alone(home):
        finish_swap(home)
        if running:
            _archive_all(repository)
        _recover(repository, target)
        failpoints.passing("restore recovered")
        if running:
            for name in (*(n for n in NAMES if n != "agent"), METADATA):
                supervisor.down(name)
        failpoints.passing("restore stopped")
        kept = _swap(repository)
    failpoints.passing("restore swapped")
    print(f"The metadata is restored; what it was lies in {kept}.")
    if running:
        lifecycle.up(dict(environ), lambda text: print(text, file=sys.stderr))
        print("The instance runs on. See `pgherd doctor` for nodes that the metadata does not know.")
    else:
        print("Start the instance with `make up`, then see `pgherd doctor`.")
    return 0


def _repository(environ: Mapping[str, str]) -> PlatformRepository:
    settings = effective.running(environ)
    if settings.database_url:
        raise Incorrect("The metadata is in a database of your own (setting database_url); back it up where it is.")
    repository = PlatformRepository(settings, accounts())
    if not repository.home.secrets.exists() or not (repository.home.secrets / "keys.toml").exists():
        raise Incorrect("This instance was never started: run `make up` first.")
    repository.installed()
    return repository


def _ask(repository: PlatformRepository, query: str) -> str:
    """What the metadata server answers; empty when it does not."""
    program = postgres_directory(repository.settings, _major(repository)) / "psql"
    login = ["-h", str(repository.home.metadata_socket), "-U", "postgres", "-d", "postgres"]
    return run_as(repository.who.database, [str(program), "-XqAt", *login, "-c", query], check=False).stdout.strip()


def _archived_at(repository: PlatformRepository) -> str:
    """When the last segment arrived; empty when the metadata server does not say."""
    form = 'YYYY-MM-DD"T"HH24:MI:SS"Z"'
    return _ask(repository, f"select to_char(last_archived_time at time zone 'utc', '{form}') from pg_stat_archiver")


def _archive_all(repository: PlatformRepository) -> None:
    """What was written until now is in the repository, if that can be had within a minute."""
    last, deadline = _ask(repository, "select pg_walfile_name(pg_switch_wal())"), time.monotonic() + 60
    query = f"select pg_sleep_for('0.2s'), 'yes' from pg_stat_archiver where last_archived_wal >= '{last}'"
    while last and time.monotonic() < deadline and not _ask(repository, query).endswith("yes"):
        continue


def _major(repository: PlatformRepository) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (repository.home.metadata / "version").read_text().strip()
    return repository.settings.default_version


def _target(to: str) -> list[str]:
    if not to:
        return []
    try:
        moment = datetime.fromisoformat(to)
    except ValueError:
        raise Incorrect(f"to: {to!r} is no time; write it like 2026-11-24T15:00:00Z.") from None
    if moment.tzinfo is None:
        raise Incorrect("to: say the time zone, such as Z for UTC: 2026-11-24T15:00:00Z.")
    if moment > datetime.now(UTC):
        raise Incorrect("to: this time is still to come.")
    text = moment.astimezone(UTC).isoformat(sep=" ")
    return ["--type=time", f"--target={text}", "--target-action=promote"]


def _recover(repository: PlatformRepository, target: list[str]) -> None:
    """A cluster beside the metadata's own that has recovered and is stopped."""
    home, database = repository.home, repository.who.database
    aside = home.metadata / RESTORING
    if aside.exists():
        run_as(database, ["find", str(aside), "-mindepth", "1", "-delete"])
    else:
        aside.mkdir(mode=0o700)
        shutil.chown(aside, *ids(database))
    program = repository.installed()
    # The recovered cluster archives into the same repository again, on a timeline of its own.
    try:
        repository.run(
            pgbackrest.restore(
                program, repository.config, pgdata=aside, target=target, archive=True, processes=limits.cores()
            )
        )
    except HostFault as error:
        if target and "unable to find backup set" in str(error):
            raise Incorrect("to: no backup had ended by this time; see `pgherd platform status`.") from None
        raise
    failpoints.passing("restore restored")
    major = run_as(database, ["cat", str(aside / "PG_VERSION")]).stdout.strip()
    with _server(repository, aside, postgres_directory(repository.settings, major)):
        pass


@contextlib.contextmanager
def _server(repository: PlatformRepository, pgdata: Path, programs: Path) -> Iterator[None]:
    """Recover and promote; what is archived then is what the real server archives later. Raises HostFault."""
    database, socket = repository.who.database, repository.home.metadata / "restoring-run"
    log = repository.home.metadata / "restoring.log"
    socket.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(socket, *ids(database))
    values = {
        "listen_addresses": "", "port": _PORT, "unix_socket_directories": socket, "archive_mode": "on",
        "archive_command": "/bin/false", "hot_standby": "off", "logging_collector": "off", "shared_buffers": "16MB",
        "max_connections": 32 + repository.settings.worker_concurrency, "max_worker_processes": 2,
        "hba_file": repository.config / "pg_hba.conf", "ident_file": repository.config / "pg_ident.conf",
        "config_file": repository.config / "postgresql.conf", "data_directory": pgdata,
        "restore_command": pgbackrest.fetch(repository.installed(), repository.config, pgdata),
    }  # fmt: skip
    options = [word for key, value in values.items() for word in ("-c", f"{key}={value}")]
    who: dict[str, object] = {}
    if database is not None:
        uid, gid = ids(database)
        who = {"user": uid, "group": gid, "extra_groups": []}
    with open(log, "w") as output:
        server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(programs / "postgres"), "-D", str(pgdata), *options],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}, umask=0o077, **who,
        )  # type: ignore[call-overload]  # fmt: skip
    try:
        _await_recovery(server, repository, pgdata, log)
        yield
        run_as(database, [str(programs / "pg_ctl"), "stop", "-D", str(pgdata), "-m", "fast", "-t", "120"])
    finally:
        if server.poll() is None:
            server.kill()
        server.wait()
        shutil.rmtree(socket, ignore_errors=True)
    log.unlink(missing_ok=True)


def _await_recovery(server: subprocess.Popen[bytes], repository: PlatformRepository, pgdata: Path, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        words = run_as(
            repository.who.database, ["cat", str(pgdata / "postmaster.pid")], check=False
        ).stdout.splitlines()
        if len(words) > 7 and words[7].strip() == "ready":
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.1)
            break
    said = log.read_text(errors="replace")
    fatal = re.findall(r"FATAL:  (.*)", said)
    if any("before configured recovery target" in text for text in fatal):
        raise Incorrect("to: the archive ends before this time; see `pgherd platform status`.")
    raise HostFault(f"The restored metadata does not recover: {fatal[-1] if fatal else said[-300:]}")


def _swap(repository: PlatformRepository) -> Path:
    """The recovered cluster takes the place of the metadata's; where that is kept."""
    home = repository.home
    kept = home.metadata / f"before-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    repository.note_restored()
    write_file(home.metadata / SWAPPING, kept.name + "\n", 0o600)
    failpoints.passing("restore noted")
    finish_swap(home)
    # The key in it may be one that the restored metadata does not know; `up` makes another.
    home.credentials.unlink(missing_ok=True)
    return kept
