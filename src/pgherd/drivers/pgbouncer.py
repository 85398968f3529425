"""PgBouncer: the program of a host, its configuration, and its console.

Clients log in by SCRAM over TLS; who they are is looked up in PostgreSQL for every login by a role that can do just
that (`preparing`), so no password is stored here and a changed one counts at once. Servers are reached over the node's
own socket as the same user, by the operating system's word. The console is PgBouncer's unix socket, for its uid alone.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import os
import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgherd import unprivileged
from pgherd.errors import Unsupported
from pgherd.spec import LOOK_UPS, SUPERUSERS, NodeSpec, Setting
from pgherd.unprivileged import Account

PREFIX = Path("/usr/local/lib/pgherd/pgbouncer/bin/pgbouncer")  # install/pgbouncer.sh
OLDEST = (1, 21)
#: Open files that a process may have: the most clients, and their servers.
FILES = 70_000
ROLE = "pgherd_pooler"
_AUTH = "pgherd_auth"  # the pool of the look-up; closed to clients
_CLOSED = (_AUTH, "pgbouncer", "postgres", "template0", "template1")
_POOL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_EVERYWHERE = ("0.0.0.0/0", "::/0")
_CLIENTS_PER_GIB = 500
_MOST_ROWS = 1000  # of a table of its console that is told on
_MARKER = "syslog_ident"  # a parameter without effect here: nothing is sent to syslog
_INTEGERS = {
    "autodb_idle_timeout": (0, 86400),
    "max_prepared_statements": (0, 3000),
    "min_pool_size": (0, 10000),
    "server_idle_timeout": (0, 86400),
    "server_lifetime": (60, 86400),
}
_AUTODB = ("autodb_pool_size", "autodb_pool_mode", "autodb_max_db_connections")
_MODES = ("session", "transaction", "statement")
_IGNORABLE = ("extra_float_digits", "search_path")


@dataclass(frozen=True)
class Program:
    """An installed PgBouncer."""

    path: str
    version: str

    @property
    def serves(self) -> bool:
        """Whether it is new enough."""
        return tuple(int(part) for part in self.version.split(".")[:2]) >= OLDEST


@dataclass(frozen=True)
class Console:
    """Where a running PgBouncer answers its own user."""

    psql: Path
    run: Path
    port: int
    account: Account | None


@dataclass(frozen=True)
class Seen:
    """What a running PgBouncer says: its version and the marker of the configuration that it works with."""

    version: str
    marker: str


def program(setting: str) -> Program | None:
    """The PgBouncer that `setting` names; when empty that of the prefix, else Debian's. None: there is none."""
    for path in paths(setting):
        try:
            asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if version := re.search(r"PgBouncer (\d+\.\d+(?:\.\d+)*)", asked.stdout):
            return Program(path, version[1])
    return None


def paths(setting: str) -> list[str]:
    """Where `program` looks, the first first."""
    return [setting] if setting else [str(PREFIX), "/usr/sbin/pgbouncer"]


def is_wanted(spec: NodeSpec) -> bool:
    """Whether a node has anything for PgBouncer to do."""
    return bool(spec.pools) or int(spec.pooler.get("autodb_pool_size", 0)) > 0


def most_clients(wished: int, files: int) -> int:
    """max_client_conn: what is wished between 5000 and 50000, and what `files` open files leave room for."""
    return max(100, min(max(5000, min(wished, 50_000)), files - min(files // 4, 15_000)))


def render(spec: NodeSpec, *, run: Path, config: Path, files: int) -> str:
    """pgbouncer.ini without the marker. Raises Unsupported for what a service may not have."""
    server = f"host={_word(str(run))} port={spec.port}"
    lines = ["; Written by pgherd; changes are overwritten.", "[databases]"]
    lines.append(f"{_AUTH} = {server} dbname=postgres pool_size={LOOK_UPS} pool_mode=session")
    more = _more_for_open_pools(spec)
    for pool in spec.pools:
        if not _POOL_NAME.fullmatch(pool.name) or pool.name in _CLOSED or pool.mode not in _MODES:
            raise Unsupported("A pool's name or mode is not acceptable.", detail=repr(pool.name)[:80])
        line = f"{pool.name} = {server} dbname={_word(pool.database)} pool_mode={pool.mode} pool_size={int(pool.size)}"
        lines.append(line if pool.username else f"{line} max_db_connections={int(pool.size) + more}")
    if size := int(spec.pooler.get("autodb_pool_size", 0)):
        mode = str(spec.pooler.get("autodb_pool_mode", "transaction"))
        if mode not in _MODES:
            raise Unsupported("autodb_pool_mode is not acceptable.")
        most = int(spec.pooler.get("autodb_max_db_connections", 0))
        lines.append(f"* = {server} pool_mode={mode} pool_size={size} max_db_connections={most}")
    lines.append("[pgbouncer]")
    return "\n".join([*lines, *(f"{k} = {v}" for k, v in _parameters(spec, run, config, files).items())]) + "\n"


def _more_for_open_pools(spec: NodeSpec) -> int:
    """Connections that each pool for all users may have beyond its size, which PgBouncer gives each of its users.

    What no other pool is promised, in equal parts: together they never ask for more than the service has. At its bound
    a pool takes idle connections from one user for another.
    """
    promised = sum(int(pool.size) for pool in spec.pools) + int(spec.pooler.get("autodb_pool_size", 0))
    spare = max(0, spec.max_connections - SUPERUSERS - LOOK_UPS - promised)
    return spare // max(1, sum(not pool.username for pool in spec.pools))


def marked(text: str, marker: str) -> str:
    """The configuration with its marker, last: it is only loaded when all before it was."""
    return f"{text}{_MARKER} = {marker}\n"


def _parameters(spec: NodeSpec, run: Path, config: Path, files: int) -> dict[str, str]:
    given = dict(spec.pooler)
    ignored = [word.strip() for word in str(given.pop("ignore_startup_parameters", "extra_float_digits")).split(",")]
    if not set(ignored) <= {*_IGNORABLE, ""}:
        raise Unsupported("ignore_startup_parameters is not acceptable.")
    wished = spec.memory_bytes * _CLIENTS_PER_GIB >> 30
    values = {
        "listen_addr": "*",
        "listen_port": str(spec.port + 1),
        "listen_backlog": "1024",
        "unix_socket_dir": str(run),
        "unix_socket_mode": "0700",
        "auth_type": "hba",
        "auth_hba_file": str(config / "pool_hba.conf"),
        "auth_user": ROLE,
        "auth_dbname": _AUTH,
        "auth_query": f"SELECT name, verifier FROM {ROLE}.lookup($1)",
        "client_tls_sslmode": "require",
        "client_tls_protocols": "secure",
        "client_tls_cert_file": str(config / "server.crt"),
        "client_tls_key_file": str(config / "server.key"),
        "server_tls_sslmode": "disable",
        "max_client_conn": str(most_clients(int(given.pop("max_client_conn", wished)), files)),
        "max_prepared_statements": "100",
        "ignore_startup_parameters": ",".join(filter(None, ignored)),
        # After a restart of PostgreSQL clients wait for the next try, 15 s by default.
        "server_login_retry": "1",
        "server_reset_query_always": str(int(bool(given.pop("server_reset_query_always", False)))),
        "log_connections": "0",
        "log_disconnections": "0",
        "log_stats": "0",
    }
    for name in _AUTODB:
        given.pop(name, None)
    for name, value in given.items():
        values[name] = str(_bounded(name, value))
    return values


def _bounded(name: str, value: Setting) -> int:
    if name not in _INTEGERS:
        raise Unsupported("A parameter of PgBouncer is not one that a service may have.", detail=repr(name)[:80])
    low, high = _INTEGERS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Unsupported(f"{name} must be between {low} and {high}.")
    return value


def render_hba(spec: NodeSpec, networks: Sequence[str]) -> str:
    """Who may use which pool from where; what no line names is refused. The console is not reached through this."""
    lines = ["# Written by pgherd; changes are overwritten."]
    for closed in (f"{','.join(_CLOSED)} all", f"all postgres,{ROLE},pgherd_monitor"):
        lines += [f"host {closed} {network} reject" for network in _EVERYWHERE]
    for pool in spec.pools:
        user = _quoted(pool.username) if pool.username else "all"
        lines += [f"hostssl {_quoted(pool.name)} {user} {network} scram-sha-256" for network in networks]
        lines += [f"host {_quoted(pool.name)} all {network} reject" for network in _EVERYWHERE]
    if int(spec.pooler.get("autodb_pool_size", 0)) > 0:
        lines += [f"hostssl all all {network} scram-sha-256" for network in networks]
    return "\n".join(lines) + "\n"


def preparing() -> str:
    """SQL for the database `postgres`: the role that looks verifiers up, with its one function. May run again.

    Up to PostgreSQL 15 a tenant's CREATEROLE reaches this role, so each run takes back what was given to it or made of
    it, and the function answers only who logged in as the role, which no client can.
    """
    return f"""
    BEGIN;
    SELECT 'CREATE ROLE {ROLE}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') \\gexec
    ALTER ROLE {ROLE} LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
      CONNECTION LIMIT -1 PASSWORD NULL VALID UNTIL 'infinity';
    ALTER ROLE {ROLE} RESET ALL;
    ALTER ROLE {ROLE} IN DATABASE postgres RESET ALL;
    SELECT format('REVOKE %I FROM %I', r.rolname, m.rolname) FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid
      JOIN pg_roles m ON m.oid = a.member WHERE '{ROLE}' IN (r.rolname, m.rolname) \\gexec
    CREATE SCHEMA IF NOT EXISTS {ROLE};
    CREATE OR REPLACE FUNCTION {ROLE}.lookup(text) RETURNS TABLE (name text, verifier text)
      LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid
          WHERE rolname = $1 AND rolcanlogin AND NOT rolsuper AND rolname <> '{ROLE}' AND session_user = '{ROLE}'
            AND rolpassword LIKE 'SCRAM-SHA-256$%' AND (rolvaliduntil IS NULL OR rolvaliduntil > now()) $$;
    REVOKE ALL ON FUNCTION {ROLE}.lookup(text) FROM PUBLIC;
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    GRANT CONNECT ON DATABASE postgres TO {ROLE};
    GRANT USAGE ON SCHEMA {ROLE} TO {ROLE};
    GRANT EXECUTE ON FUNCTION {ROLE}.lookup(text) TO {ROLE};
    COMMIT;
    """


def is_prepared() -> str:
    """An SQL condition: nothing has to be prepared again."""
    return f"""
    SELECT EXISTS (SELECT FROM pg_roles r WHERE rolname = '{ROLE}' AND rolcanlogin AND rolconfig IS NULL
      AND (rolvaliduntil IS NULL OR rolvaliduntil = 'infinity') AND rolconnlimit = -1
      AND NOT EXISTS (SELECT FROM pg_auth_members WHERE r.oid IN (roleid, member)));
    """


def look(console: Console) -> Seen | None:
    """What a running PgBouncer says; None when it does not answer (yet)."""
    shown = _ask(console, "SHOW CONFIG")
    version = _ask(console, "SHOW VERSION") if shown is not None else None
    if shown is None or version is None:
        return None
    marker = next((row.get("value", "") for row in shown if row.get("key") == _MARKER), "")
    words = " ".join(next(iter(version), {}).values())
    found = re.search(r"\d+\.\d+(?:\.\d+)*", words)
    return Seen(found[0] if found else "", marker or "")


def counted(console: Console) -> dict[str, list[dict[str, str]]] | None:
    """What it counts, by `pools`, `stats`, `databases` and `lists`, as its console names the columns.

    None: it does not answer.
    """
    asked = {"pools": "SHOW POOLS", "stats": "SHOW STATS", "databases": "SHOW DATABASES", "lists": "SHOW LISTS"}
    script = [word for command in asked.values() for word in ("-c", command, "-c", "\\echo")]
    answer = unprivileged.run(
        console.account, [*_psql(console), *script], timeout=10, limit=4 << 20, env=_PSQL_ENV, memory=512 << 20
    )
    if answer.code != 0:
        return None
    tables: list[list[list[str]]] = [[]]
    for row in csv.reader(io.StringIO(answer.out.decode(errors="replace"))):
        if row:
            tables[-1].append(row)
        else:
            tables.append([])
    found = {
        part: [dict(zip(table[0], row, strict=False)) for row in table[1 : _MOST_ROWS + 1]] if table else []
        for part, table in zip(asked, tables, strict=False)
    }
    own = (_AUTH, "pgbouncer")
    return {p: [row for row in rows if row.get("name", row.get("database")) not in own] for p, rows in found.items()}


def reload(console: Console) -> None:
    """Let it read its configuration again; connections of pools that did not change stay."""
    _ask(console, "RELOAD")


def cut(console: Console, spec: NodeSpec, networks: Sequence[str], users: Collection[str] | None) -> bool:
    """End clients that would not be let in any more. False: this version cannot end single clients.

    `users`: who may log in (None: not known). Of one who may not, PostgreSQL has ended the sessions, but a client that
    PgBouncer keeps would go on as the next user of that name.
    """
    allowed = [ipaddress.ip_network(network) for network in networks]
    only = {pool.name: pool.username for pool in spec.pools}
    for client in _ask(console, "SHOW CLIENTS") or []:
        try:
            address = ipaddress.ip_address((client.get("addr") or "").partition("%")[0])
        except ValueError:
            continue  # our own look, over the unix socket
        fits = any(address in network for network in allowed if network.version == address.version)
        user = client.get("user", "")
        exists = users is None or user in users or user == "(nouser)"
        if fits and exists and only.get(client.get("database", ""), "") in ("", user):
            continue
        if not (number := client.get("id", "")).isdigit():
            return False
        _ask(console, f"KILL_CLIENT {number}")
    return True


_PSQL_ENV = {"PGCONNECT_TIMEOUT": "3", "PGGSSENCMODE": "disable", "PGSSLMODE": "disable"}


def _psql(console: Console) -> list[str]:
    where = ["-h", str(console.run), "-p", str(console.port), "-U", "pgbouncer", "-d", "pgbouncer"]
    return [str(console.psql), "-Xqw", "--csv", *where]


def _ask(console: Console, command: str) -> list[dict[str, str]] | None:
    argv = [*_psql(console), "-c", command]
    answer = unprivileged.run(console.account, argv, timeout=10, limit=32 << 20, env=_PSQL_ENV, memory=512 << 20)
    if answer.code != 0:
        return None
    rows = csv.DictReader(io.StringIO(answer.out.decode(errors="replace")))
    return [{str(k): str(v) for k, v in row.items()} for row in rows]


def _word(value: str) -> str:
    """A value of a connection string. Raises Unsupported for what a line of the file cannot hold."""
    if not value.isprintable() or not value:
        raise Unsupported("A name in a pool is not acceptable.", detail=repr(value)[:80])
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    if not name.isprintable() or '"' in name:
        raise Unsupported("A name in a pool is not acceptable.", detail=repr(name)[:80])
    return f'"{name}"'


def open_files(rooted: bool, hard: int) -> int:
    """How many files the process will be able to open: root raises the limit, others have what they have."""
    return FILES if rooted or hard < 0 else min(FILES, hard)


def start_command(found: Program, config: Path) -> list[str]:
    """The command line of the process."""
    return [os.fspath(found.path), str(config / "pgbouncer.ini")]
