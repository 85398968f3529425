"""PostgreSQL on a host: its programs, a new cluster, SQL as the platform, what a cluster says of itself.

Everything that touches a cluster's files or speaks to it runs under the service's own uid; what it answers is
hostile input: bounded, with a deadline, and decoded into types before it is used.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
from psycopg import sql

from pgherd import unprivileged
from pgherd.errors import HostFault
from pgherd.spec import Role
from pgherd.unprivileged import Account

#: Version of what `bake` puts into a new cluster; part of the key of the warm pool.
BAKE = 4
#: The first major that can have the extension `pgherd`: functions with bodies in standard SQL, pg_database_owner.
OLDEST_GUARDED = 14
#: Locales of a new cluster, the first that the host has; the hosted service has the first one. C.UTF-8 sorts by
#: code point but knows letters; both need no package.
LOCALES = ("en_US.UTF-8", "C.UTF-8", "C")
#: Users and databases of an observation; there may be more.
MOST_SEEN = 2000
_PSQL_MEMORY = 192 << 20  # bytes; a forged server could fill the memory with one answer
#: Where majors are found, the earlier one first: Debian's packages, and what install/postgresql.sh puts beside them.
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/lib/pgherd/postgresql-*/usr/lib/postgresql/*/bin")
#: What wins over what an owner of a database has set for all who connect to it.
_OPTIONS = {
    "search_path": "pg_catalog",
    "role": "none",
    "local_preload_libraries": "",
    "standard_conforming_strings": "on",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read\\ committed",
    "statement_timeout": "5000",
    "lock_timeout": "2000",
    "log_min_error_statement": "panic",  # a failed statement may hold a verifier; it must not be logged
    "log_statement": "none",
    # What a tenant sets for its own statements must not fill its log with ours, or show a verifier in it.
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_duration": "off",
    "pg_stat_statements.track": "none",
    "pgaudit.log": "none",
    "jit": "off",
}
_NOT_YET = re.compile(
    "starting up|not yet accepting|shutting down|No such file|Connection refused|in recovery mode|server closed"
)


class NotReady(HostFault):
    """PostgreSQL does not take connections now, but may soon."""


class SqlRefused(HostFault):
    """PostgreSQL refused a statement: its SQLSTATE, and its message, which may name what the tenant named."""

    def __init__(self, code: str, words: str, detail: str) -> None:
        super().__init__("SQL to a service failed.", detail=detail)
        self.code, self.words = code, words


@dataclass(frozen=True)
class Program:
    """One installed major: the directory of its programs and its full version."""

    major: str
    bin: Path
    version: str
    control_files: Path = Path("/nonexistent")  # of extensions
    library_files: Path = Path("/nonexistent")

    @property
    def libraries(self) -> list[str]:
        """What of the libraries that services may preload is installed."""
        return self._found("pg_stat_statements", "pgaudit", "timescaledb", "pg_partman_bgw")

    def audit_parameters(self, names: Iterable[str]) -> list[str]:
        """Which of these parameters the installed pgaudit knows: its releases differ, and its library names them."""
        library = self.library_files / "pgaudit.so"
        content = library.read_bytes() if library.exists() else b""
        return [name for name in names if f"\0{name}\0".encode() in content]

    @property
    def session_libraries(self) -> list[str]:
        """What every session loads, as far as it is installed: pgextwlist lets tenants create extensions."""
        return self._found("pgextwlist")

    @property
    def own_extension(self) -> str:
        """Version of the extension `pgherd` that new clusters get; empty when it is not installed or cannot be."""
        control = self.control_files / "pgherd.control"
        found = re.search(r"default_version = '(\w+)'", control.read_text()) if control.exists() else None
        return found[1] if found and int(self.major) >= OLDEST_GUARDED else ""

    def _found(self, *names: str) -> list[str]:
        return [name for name in names if (self.library_files / f"{name}.so").exists()]


@dataclass(frozen=True)
class Cluster:
    """One cluster of a node: where its files lie, and as whom it runs (`account`; None: as the caller)."""

    program: Program
    directory: Path
    account: Account | None
    port: int = 0

    @property
    def pgdata(self) -> Path:
        """PGDATA; the service can write here."""
        return self.directory / "data" / "pgdata"

    @property
    def config(self) -> Path:
        """Configuration; the service can only read here."""
        return self.directory / "config"

    @property
    def run(self) -> Path:
        """The directory of the socket; the service can write here."""
        return self.directory / "run"


class Archiver(msgspec.Struct, frozen=True):
    """How archiving stands: the last segment that went and when (RFC 3339), whether trying failed since, how many
    segments wait."""

    wal: str
    at: str
    fails: bool
    waiting: int


class Observation(msgspec.Struct, frozen=True):
    """What a cluster says of itself. `config`, `guard` and `restart` are the markers it was loaded and started with.

    `refused` is what it does not accept in its files: it runs with other values. What only waits for a restart is in
    `pending_restart`. `more` is what the caller's own expression gave, as JSON.
    """

    version: str
    config: str
    restart: int
    databases: list[str]
    users: list[Role]
    pending_restart: list[str]
    max_connections: int
    refused: str = ""
    newest_database: int = 0  # oid
    preloaded: str = ""
    guard: str = ""
    archiver: Archiver | None = None
    more: msgspec.Raw = msgspec.Raw(b"null")


def installed() -> dict[str, Path]:
    """Major -> directory of the programs that this machine has in the usual places."""
    found: dict[str, Path] = {}
    for pattern in _PLACES:
        for path in sorted(Path("/").glob(pattern[1:])):
            if path.parent.name.isdigit() and (path / "postgres").exists():
                found.setdefault(path.parent.name, path)
    return found


def programs(setting: str) -> dict[str, Program]:
    """The installed majors: from `MAJOR=DIR,...`, or what is `installed` when that is empty."""
    found = {}
    for major, place in places(setting).items():
        asked = subprocess.run([f"{place}/postgres", "--version"], capture_output=True, text=True, check=False)
        if version := re.search(r"\) (\d+(?:\.\d+|\w+))", asked.stdout):
            found[major] = Program(major, Path(place), version[1], *_places(Path(place), major))
    return found


def places(setting: str) -> dict[str, str]:
    """The directory of the programs of each major, see `programs`."""
    named = dict(word.strip().split("=", 1) for word in setting.split(",") if "=" in word)
    return named or {major: str(place) for major, place in installed().items()}


def _places(programs: Path, major: str) -> tuple[Path, Path]:
    """The directories of control files and of libraries; Debian's where there is no pg_config to ask."""
    asked = [f"{programs}/pg_config", "--sharedir", "--pkglibdir"]
    with contextlib.suppress(OSError):
        share, libraries = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()[:2]
        return Path(share) / "extension", Path(libraries)
    return Path(f"/usr/share/postgresql/{major}/extension"), programs.parent / "lib"


@cache
def locale() -> str:
    """The locale of new clusters on this host."""
    known = {name.lower().replace("-", "") for name in locales()}
    return next((name for name in LOCALES if name.lower().replace("-", "") in known), LOCALES[-1])


def locales() -> list[str]:
    """The locales of this host, as it spells them, but for those of another encoding than UTF-8."""
    listed = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout
    return sorted(name for name in listed.split() if re.fullmatch(r"[^.]+(\.(utf-?8)(@\w+)?)?", name, re.IGNORECASE))


def key(program: Program) -> str:
    """All that decides what `create` makes."""
    return f"{program.version} {locale()} UTF8 checksums bake-{BAKE} own-{program.own_extension or 'none'}"


def create(cluster: Cluster, *, idle: bool) -> None:
    """initdb, then `_baked`. `idle` makes it give way to everything else. Raises HostFault with initdb's last words."""
    program, nice = cluster.program, ["nice", "-n", "15"] if idle else []
    _must(cluster, [
        *nice, f"{program.bin}/initdb", "-D", str(cluster.pgdata), "-U", "postgres", "--encoding=UTF8",
        f"--locale={locale()}", "--data-checksums", "--auth-local=peer", "--auth-host=reject",
        "--no-sync", "--no-instructions",
    ])  # fmt: skip
    if program.own_extension:
        # Databases are made from either template; only a single-user server can enter template0.
        for template in ("template0", "template1"):
            _bake(cluster, template, "CREATE EXTENSION pgherd;\n\n", nice)
    _bake(cluster, "postgres", _baked(int(program.major)), nice)
    _must(cluster, [*nice, f"{program.bin}/initdb", "--sync-only", "-D", str(cluster.pgdata)])


def _bake(cluster: Cluster, database: str, script: str, nice: list[str]) -> None:
    arguments = ["--single", "-j", "-D", str(cluster.pgdata), "-c", "allow_system_table_mods=on", "-c", "fsync=off"]
    said = _must(cluster, [*nice, f"{cluster.program.bin}/postgres", *arguments, database], script)
    if re.search(r"ERROR:|FATAL:|PANIC:", said):
        raise HostFault("A new cluster could not be prepared.", detail=said[-500:])


def _baked(major: int) -> str:
    """What every new cluster gets, whoever it is for: the database, and no way around the wall."""
    statements = [
        "CREATE DATABASE defaultdb TEMPLATE template0",
        "REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC",
    ]
    if major <= 15:
        # Up to 15 CREATEROLE may grant any role but a superuser's: these four are commands, files and verifiers.
        statements.append(
            "UPDATE pg_authid SET rolsuper = true WHERE rolname IN"
            " ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_read_all_data')"
        )
    return "".join(f"{statement};\n\n" for statement in statements)


def start_command(cluster: Cluster, restart: int) -> list[str]:
    """The command line of the server. What it names wins over files that the service itself could write."""
    named = {
        "config_file": cluster.config / "postgresql.conf",
        "hba_file": cluster.config / "pg_hba.conf",
        "ident_file": cluster.config / "pg_ident.conf",
        "unix_socket_directories": cluster.run,
        "port": cluster.port,
        "pgherd.restart": restart,
    }
    if len(f"{cluster.run}/.s.PGSQL.65535") > 107:
        raise HostFault("The home directory's path is too long for a unix socket in it.", detail=str(cluster.run))
    options = [word for name, value in named.items() for word in ("-c", f"{name}={value}")]
    return [f"{cluster.program.bin}/postgres", "-D", str(cluster.pgdata), *options]


def refusal_of(cluster: Cluster, conf: Path) -> str:
    """Why PostgreSQL would not start with this postgresql.conf; empty when it would."""
    argv = [f"{cluster.program.bin}/postgres", "-D", str(cluster.pgdata), "-c", f"config_file={conf}", "-C", "port"]
    answer = unprivileged.run(cluster.account, argv, timeout=10)
    return "" if answer.code == 0 else answer.err.strip()[:2000] or "PostgreSQL gives no reason"


def psql(
    cluster: Cluster,
    script: str,
    *,
    database: str = "postgres",
    options: dict[str, str] | None = None,
    timeout: float = 8,
    limit: int = 4 << 20,
) -> str:
    """Run SQL as the platform, with `options` set from the start, which wins over what a tenant set for the database.

    Raises NotReady, SqlRefused or HostFault with what psql says.
    """
    argv, env = session(cluster, database, options or {})
    answer = unprivileged.run(
        cluster.account, argv, stdin=script.encode(), timeout=timeout, limit=limit, env=env, memory=_PSQL_MEMORY
    )
    if answer.code == 0:
        return answer.out.decode(errors="replace")
    said = answer.err.strip()[:1000]
    # SIGKILL: the server has just ended, and with it every process of its user.
    if answer.code == -signal.SIGKILL or (answer.code == 2 and _NOT_YET.search(said)):
        raise NotReady("PostgreSQL does not take connections yet.", detail=said)
    if refused := re.search(r"^(?:psql:\S+ )?ERROR:  ([0-9A-Z]{5}): (.*)", said, re.MULTILINE):
        raise SqlRefused(refused[1], refused[2], said)
    raise HostFault("SQL to a service failed.", detail=said)


def session(cluster: Cluster, database: str, options: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a psql that talks to the cluster as the platform; see `psql`."""
    argv = [f"{cluster.program.bin}/psql", "-XqAtw", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]
    env = {
        "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in (_OPTIONS | options).items()),
        "PGAPPNAME": "pgherd", "PGCONNECT_TIMEOUT": "3", "PGGSSENCMODE": "disable", "PGSSLMODE": "disable",
        "PGCLIENTENCODING": "UTF8",
        # Not -d: a name with `=` in it would be read as where to connect.
        "PGDATABASE": database,
    }  # fmt: skip
    return [*argv, "-h", str(cluster.run), "-p", str(cluster.port), "-U", "postgres"], env


#: What PostgreSQL does not accept in its files, without the values; empty when all is well. Of a value out of range it
#: says no more than of one that waits for a restart, which alone is marked in pg_settings. A parameter that is in no
#: file any more and waits has a row without its name.
_REFUSED = """
    (SELECT coalesce(left(string_agg(complaint, '; '), 1000), '') FROM
      (SELECT coalesce(f.name || ': ', '') || CASE WHEN f.error <> 'setting could not be applied' THEN f.error
          ELSE 'PostgreSQL refuses the value' || coalesce('; it takes ' || s.min_val || ' to ' || s.max_val, '') END
         FROM pg_file_settings f LEFT JOIN pg_settings s ON lower(s.name) = lower(f.name)
         WHERE f.error IS NOT NULL AND s.pending_restart IS NOT true
           AND NOT (f.name IS NULL AND f.error LIKE '%cannot be changed without restarting the server')
       UNION ALL SELECT 'pg_hba line ' || line_number || ': ' || error FROM pg_hba_file_rules WHERE error IS NOT NULL
       LIMIT 20) e (complaint))"""


def observing(cut: str, *, more: str = "NULL") -> str:
    """The SQL of `observe`; `cut` is an SQL number that ends connections that are not allowed, see `hba.count_cut`.

    `more` is an SQL expression for JSON that is asked for in the same breath.

    A server that has never reloaded does so: its checkpointer began while it was starting up, and until something wakes
    it, for up to `checkpoint_timeout`, it does not heed `archive_timeout`.
    """
    return f"""
    SELECT json_build_object(
      'version', split_part(current_setting('server_version'), ' ', 1),
      'config', coalesce(current_setting('pgherd.config', true), ''),
      'restart', coalesce(current_setting('pgherd.restart', true), '0')::int,
      'databases', (SELECT coalesce(json_agg(datname ORDER BY datname), '[]') FROM
         (SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' LIMIT {MOST_SEEN}) d),
      'users', (SELECT coalesce(json_agg(json_build_object('name', rolname, 'replication', rolreplication, 'password',
         coalesce(left(encode(sha256(convert_to(rolpassword, 'UTF8')), 'hex'), 16), '')) ORDER BY rolname), '[]') FROM
         (SELECT * FROM pg_authid WHERE rolcanlogin AND NOT rolsuper
           AND rolname NOT IN ('pgherd_pooler', 'pgherd_monitor') LIMIT {MOST_SEEN}) r),
      'pending_restart',
         (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings WHERE pending_restart),
      'max_connections', current_setting('max_connections')::int,
      'refused', {_REFUSED},
      'newest_database', (SELECT max(oid::bigint) FROM pg_database WHERE datallowconn),
      'preloaded', current_setting('shared_preload_libraries'),
      'guard', coalesce(current_setting('pgherd.guard', true), ''),
      'archiver', (SELECT json_build_object('wal', coalesce(last_archived_wal, ''),
         'at', coalesce(to_char(last_archived_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), ''),
         'fails', coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false),
         'waiting', (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready')) FROM pg_stat_archiver),
      'woken', (SELECT pg_reload_conf() WHERE pg_conf_load_time() <= pg_postmaster_start_time()),
      'more', {more},
      'cut', {cut});
    """


def parse_observation(text: str) -> Observation:
    """Read the answer of `observing`. Raises HostFault for anything else."""
    try:
        return msgspec.json.decode(text.strip().rsplit("\n", 1)[-1], type=Observation)
    except msgspec.MsgspecError as error:
        raise HostFault("A service's PostgreSQL gives a wrong answer.", detail=str(error)[:200]) from None


def observe(cluster: Cluster, cut: str, *, more: str = "NULL") -> Observation:
    """Ask the cluster. Raises NotReady or HostFault."""
    return parse_observation(psql(cluster, observing(cut, more=more)))


def reload(cluster: Cluster) -> None:
    """Let the server read its configuration again; `Observation.config` shows when it has."""
    psql(cluster, "SELECT pg_reload_conf();")


def creating_admin(name: str, verifier: str) -> str:
    """SQL that makes the service's admin: owner of defaultdb and its public schema, no superuser. May run again."""
    if not re.fullmatch(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+", verifier):
        raise HostFault("The admin's verifier is not a SCRAM-SHA-256 one.")
    if name == "postgres" or name.startswith("pg_") or not name:
        raise HostFault("The admin cannot have this name.", detail=name)
    query = sql.SQL("""
    SELECT format('CREATE ROLE %I', {name}) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) \\gexec
    ALTER ROLE {role} LOGIN CREATEDB CREATEROLE NOSUPERUSER NOREPLICATION NOBYPASSRLS PASSWORD {verifier};
    SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'defaultdb' AND datallowconn) AS present \\gset
    \\if :present
    ALTER DATABASE defaultdb OWNER TO {role};
    \\connect defaultdb
    SELECT format('ALTER SCHEMA public OWNER TO %I', {name}) WHERE to_regnamespace('public') IS NOT NULL \\gexec
    \\connect postgres
    \\endif
    """)
    named = query.format(name=sql.Literal(name), role=sql.Identifier(name), verifier=sql.Literal(verifier))
    return named.as_string(None)


def _must(cluster: Cluster, argv: list[str], stdin: str = "") -> str:
    answer = unprivileged.run(cluster.account, argv, stdin=stdin.encode(), timeout=300)
    if answer.code != 0:
        raise HostFault("A new cluster could not be made.", detail=answer.err.strip()[-500:])
    return answer.err
