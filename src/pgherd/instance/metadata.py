"""The private metadata PostgreSQL: made once, on a unix socket only, small, peer identity only."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from pgherd import failpoints
from pgherd.drivers.supervisor import Service, Supervisor
from pgherd.errors import HostFault
from pgherd.home import Home
from pgherd.instance.accounts import Accounts, ids, run_as
from pgherd.instance.layout import write_file
from pgherd.instance.platform_repository import PlatformRepository
from pgherd.instance.poll import until_ready
from pgherd.instance.programs import postgres_directory
from pgherd.settings import Settings

NAME = "metadata"
#: Beside the data directory: a restored one that is to take its place, and the note that it is doing so.
RESTORING, SWAPPING = "restoring", "swapping"

_CONFIG = """\
# Written by `pgherd up`.
data_directory = '{data}'
hba_file = '{config}/pg_hba.conf'
ident_file = '{config}/pg_ident.conf'
unix_socket_directories = '{run}'
listen_addresses = ''
max_connections = {connections}
shared_buffers = 16MB
work_mem = 2MB
maintenance_work_mem = 16MB
jit = off
max_parallel_workers_per_gather = 0
max_worker_processes = 2
max_logical_replication_workers = 0
autovacuum_max_workers = 1
autovacuum_naptime = 20s
autovacuum_vacuum_cost_delay = 0
wal_level = replica
max_wal_senders = 2
min_wal_size = 32MB
max_wal_size = 128MB
random_page_cost = 1.1
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '[%p] %q%u %a '
{archiving}"""

_HBA = """\
# Written by `pgherd up`. No password opens this server; pg_ident.conf says who may be whom.
local  postgres  postgres  peer map=pgherd
local  pgherd    all       peer map=pgherd
"""

_ROLES = """\
set client_min_messages = warning;
select 'create role pgherd login' where not exists (select from pg_roles where rolname = 'pgherd') \\gexec
select 'create role "{host}" login' where not exists (select from pg_roles where rolname = '{host}') \\gexec
select 'create database pgherd owner pgherd' where not exists (select from pg_database where datname = 'pgherd') \\gexec
revoke all on database pgherd, postgres, template1 from public;
grant connect on database pgherd to "{host}";
"""


class Metadata:
    """The private server of one instance."""

    def __init__(self, settings: Settings, who: Accounts, host_login: str) -> None:
        self._settings = settings
        self._home = Home(settings.root)
        self._who = who
        self._host_login = host_login
        self._data = self._home.metadata / "data"
        self._config = self._home.metadata / "config"

    def ensure_files(self) -> bool:
        """Make the data directory where there is none and write the configuration; whether a restart is needed."""
        finish_swap(self._home)
        if not self._data.exists():
            self._initdb()
        root, group = ids(None)[0], ids(self._who.database)[1]
        connections = 32 + self._settings.worker_concurrency
        repository = PlatformRepository(self._settings, self._who)
        repository.ensure_script()
        archiving = "".join(f"{name} = '{value}'\n" for name, value in repository.parameters().items())
        text = _CONFIG.format(
            data=self._data, config=self._config, run=self._home.metadata_socket, connections=connections,
            archiving=archiving,
        )  # fmt: skip
        who_is_whom = {"postgres": self._who.database, "pgherd": self._who.control, self._host_login: None}
        me = _name_of_caller()
        ident = "".join(f"pgherd {user or me} {role}\n" for role, user in who_is_whom.items())
        changed = write_file(self._config / "postgresql.conf", text, 0o640, (root, group))
        write_file(self._config / "pg_hba.conf", _HBA, 0o640, (root, group))
        write_file(self._config / "pg_ident.conf", ident, 0o640, (root, group))
        return changed

    @property
    def _version_file(self) -> Path:
        return self._home.metadata / "version"

    def directory_of_programs(self) -> Path:
        """The programs of the major version that the data directory was made with."""
        try:
            major = self._version_file.read_text().strip()
        except FileNotFoundError:
            major = self._settings.default_version
        return postgres_directory(self._settings, major)

    def _initdb(self) -> None:
        """Made aside and renamed, so that a killed attempt leaves nothing that looks whole."""
        making = self._home.metadata / "making"
        user = self._who.database
        if making.exists():
            run_as(user, ["find", str(making), "-mindepth", "1", "-delete"])
            making.rmdir()
        making.mkdir(mode=0o700)
        shutil.chown(making, *ids(user))
        programs = postgres_directory(self._settings, self._settings.default_version)
        run_as(
            user,
            [
                str(programs / "initdb"),
                "--pgdata",
                str(making),
                "--username",
                "postgres",
                "--auth",
                "peer",
                "--encoding",
                "UTF8",
                "--locale",
                "C.UTF-8",
                "--data-checksums",
                "--no-instructions",
            ],
        )
        write_file(self._version_file, self._settings.default_version + "\n", 0o644)
        making.rename(self._data)

    def service(self) -> Service:
        """How s6 runs it."""
        return Service(
            argv=[str(self.directory_of_programs() / "postgres"), "-c", f"config_file={self._config}/postgresql.conf"],
            user=self._who.database,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            down_signal="SIGINT",
            kill_after_ms=60_000,
            oom_score_adj=-600,
        )

    def ensure_running(self, supervisor: Supervisor) -> None:
        """Start it, wait until it answers, and make the roles and the database."""
        supervisor.up(NAME)
        ready = [str(self.directory_of_programs() / "pg_isready"), "-q", "-h", str(self._home.metadata_socket)]
        until_ready(lambda: run_as(None, ready, check=False).returncode == 0, supervisor, NAME, 60)
        self._ensure_roles()

    def _ensure_roles(self) -> None:
        psql = str(self.directory_of_programs() / "psql")
        login = ["-h", str(self._home.metadata_socket), "-U", "postgres", "-d", "postgres"]
        argv = [psql, "-XqAt", "-v", "ON_ERROR_STOP=1", *login]
        done = run_as(self._who.database, argv, input=_ROLES.format(host=self._host_login), check=False)
        if done.returncode != 0:
            raise HostFault("The metadata's roles cannot be made.", detail=done.stderr.strip()[-2000:])


def finish_swap(home: Home) -> None:
    """A restored data directory takes the place of the one before, also when that was interrupted. May run again."""
    note = home.metadata / SWAPPING
    if not note.exists():
        return
    data, restored, kept = home.metadata / "data", home.metadata / RESTORING, home.metadata / note.read_text().strip()
    if data.exists() and not kept.exists():
        data.rename(kept)
    failpoints.passing("restore put aside")
    if restored.exists():
        restored.rename(data)
    note.unlink()


def _name_of_caller() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
