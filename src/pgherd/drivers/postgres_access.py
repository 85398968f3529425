"""The SQL of single changes to a cluster's roles and databases. Pure.

Everything is named in full or by catalog, and no statement here runs a tenant's code: there is nothing but DDL, and
event triggers, which could run with it, are for superusers alone to make.
"""

from __future__ import annotations

import re

from psycopg import sql

from pgherd.errors import HostFault

#: What holds for a change from the start of its session; a tenant may have set otherwise for its database.
OPTIONS = {
    "statement_timeout": "60000",
    "lock_timeout": "10000",
    "role": "none",
    "default_transaction_read_only": "off",
    "client_min_messages": "error",
}
#: How a passed-on, dropped or created thing may be refused for good: by its SQLSTATE class or state.
_TRANSIENT = ("08", "40", "53", "57", "58", "XX", "55P03")


def is_held_up(sqlstate: str) -> bool:
    """Whether it took longer than `OPTIONS` allow: others hold a lock, or there is too much to do."""
    return sqlstate in ("55P03", "57014")


def is_transient(sqlstate: str) -> bool:
    """Whether the same statement may succeed later."""
    return sqlstate.startswith(_TRANSIENT)


def is_reserved_role(name: str) -> bool:
    """Names that are the platform's or PostgreSQL's own."""
    return name in ("postgres", "public", "none", "") or name.startswith(("pg_", "pgherd_"))


def is_reserved_database(name: str) -> bool:
    """Databases that a service cannot be without, and names that mean something else in pg_hba.conf or PgBouncer."""
    return name in ("defaultdb", "postgres", "template0", "template1", "pgbouncer", "replication", "")


def looking(role: str, database: str) -> str:
    """What there is before a change, as one JSON line: see `agent.tasks.Found`.

    Up to 15 a subscription cannot be passed on to somebody who is no superuser, and nobody can be passed anything in a
    database that lets nobody in; `cannot_pass_on` names these.
    """
    return _text(
        """
    SELECT json_build_object(
      'cannot_pass_on', (SELECT coalesce(json_agg(what ORDER BY what), '[]') FROM (
        SELECT format('subscription %s of database %s', subname, datname) AS what
          FROM pg_subscription JOIN pg_database d ON d.oid = subdbid JOIN pg_authid r ON r.oid = subowner
          WHERE rolname = {role} AND current_setting('server_version_num')::int < 160000
        UNION SELECT format('objects in database %s, which allows no connections', datname)
          FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid JOIN pg_authid r ON r.oid = s.refobjid
          WHERE refclassid = 'pg_authid'::regclass AND rolname = {role} AND NOT datallowconn) w),
      'role', EXISTS (SELECT FROM pg_authid WHERE rolname = {role}),
      'superuser', EXISTS (SELECT FROM pg_authid WHERE rolname = {role} AND rolsuper),
      'database', EXISTS (SELECT FROM pg_database WHERE datname = {database}),
      'template', EXISTS (SELECT FROM pg_database WHERE datname = {database} AND datistemplate),
      'databases', (SELECT json_agg(datname ORDER BY datname) FROM pg_database WHERE datallowconn));
    """,
        role=sql.Literal(role),
        database=sql.Literal(database),
    )


def creating_user(name: str, verifier: str, *, replication: bool, admin: str, major: int) -> str:
    """A role that may log in and nothing more. From 16 on the admin may alter it because it is given that right."""
    text = "CREATE ROLE {name} LOGIN {replication} PASSWORD {verifier};\n"
    if major >= 16:
        text = "BEGIN;\n" + text + "GRANT {name} TO {admin} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;\nCOMMIT;\n"
    return _text(
        text,
        name=sql.Identifier(name),
        replication=_replication(replication),
        verifier=_verifier(verifier),
        admin=sql.Identifier(admin),
    )


def setting_password(name: str, verifier: str) -> str:
    """Give a role another password; one that has expired is valid again."""
    text = "ALTER ROLE {name} PASSWORD {verifier} VALID UNTIL 'infinity';\n"
    return _text(text, name=sql.Identifier(name), verifier=_verifier(verifier))


def setting_replication(name: str, replication: bool) -> str:
    """Let a role replicate or not; what it streams already ends when it may not any more."""
    text = "ALTER ROLE {name} {replication};\n"
    if not replication:
        text += (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE usename = {literal} AND backend_type = 'walsender';\n"
        )
    return _text(text, name=sql.Identifier(name), literal=sql.Literal(name), replication=_replication(replication))


def shutting_out(name: str) -> str:
    """Let a role log in no more and end its sessions."""
    return _text(
        "ALTER ROLE {name} NOLOGIN;\n"
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = {literal};\n",
        name=sql.Identifier(name),
        literal=sql.Literal(name),
    )


def letting_in(name: str) -> str:
    """Undo `shutting_out`, but for the sessions."""
    return _text("ALTER ROLE {name} LOGIN;\n", name=sql.Identifier(name))


def passing_on(name: str, owner: str) -> str:
    """In one database: its objects (and databases) become `owner`'s; what it was granted there goes."""
    text = "BEGIN;\nREASSIGN OWNED BY {name} TO {owner};\nDROP OWNED BY {name};\nCOMMIT;\n"
    return _text(text, name=sql.Identifier(name), owner=sql.Identifier(owner))


def dropping_user(name: str) -> str:
    """The end of a role that owns nothing any more."""
    return _text("DROP ROLE IF EXISTS {name};\n", name=sql.Identifier(name))


def creating_database(name: str, owner: str, lc_collate: str, lc_ctype: str) -> str:
    """An empty UTF-8 database of `owner`; an empty locale is the cluster's."""
    text = "CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'"
    if lc_collate:
        text += " LC_COLLATE {lc_collate}"
    if lc_ctype:
        text += " LC_CTYPE {lc_ctype}"
    return _text(
        text + ";\n",
        name=sql.Identifier(name),
        owner=sql.Identifier(owner),
        lc_collate=sql.Literal(lc_collate),
        lc_ctype=sql.Literal(lc_ctype),
    )


def owning_public(owner: str) -> str:
    """In a new database up to 14: its schema public is the owner's, as it is from 15 on."""
    return _text("ALTER SCHEMA public OWNER TO {owner};\n", owner=sql.Identifier(owner))


def dropping_database(name: str) -> str:
    """The end of a database and of every connection to it."""
    return _text("DROP DATABASE IF EXISTS {name} WITH (FORCE);\n", name=sql.Identifier(name))


def _text(query: str, **values: sql.Composable) -> str:
    return sql.SQL(query).format(**values).as_string(None)


def _replication(wanted: bool) -> sql.SQL:
    return sql.SQL("REPLICATION") if wanted else sql.SQL("NOREPLICATION")


def _verifier(verifier: str) -> sql.Literal:
    if not re.fullmatch(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+", verifier):
        raise HostFault("A password's verifier is not a SCRAM-SHA-256 one.")
    return sql.Literal(verifier)
