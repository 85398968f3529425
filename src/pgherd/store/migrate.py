"""Bring the schema up to date: Procrastinate's own, then the numbered files of `migrations/`."""

from __future__ import annotations

import re
from importlib import resources

import psycopg


def migrate(url: str) -> list[str]:
    """Apply what is missing, in order, all in one transaction; the names of what was applied.

    `url` must log in as the owner of the database, who needs to be no superuser.
    """
    applied = []
    with psycopg.connect(url, application_name="pgherd-migrate") as connection:
        connection.execute("select pg_advisory_xact_lock(hashtext('pgherd migrate'))")
        connection.execute("create table if not exists migration (name text primary key, at timestamptz default now())")
        done = {row[0] for row in connection.execute("select name from migration")}
        for name, text in _texts():
            if name not in done:
                connection.execute(text)
                connection.execute("insert into migration (name) values (%s)", [name])
                applied.append(name)
    return applied


def grant_host(url: str, login: str) -> None:
    """Allow the role `login`, which must exist, to act as a host's agent."""
    with psycopg.connect(url, application_name="pgherd-migrate") as connection:
        role = psycopg.sql.Identifier(login)
        connection.execute(psycopg.sql.SQL("grant usage on schema host_api to {}").format(role))
        connection.execute(psycopg.sql.SQL("grant execute on all functions in schema host_api to {}").format(role))


def _texts() -> list[tuple[str, str]]:
    queue = resources.files("procrastinate").joinpath("sql", "schema.sql").read_text()
    files = [f for f in resources.files("pgherd.store").joinpath("migrations").iterdir() if re.match(r"\d{4}_", f.name)]
    return [("procrastinate-3.10", queue)] + [(f.name, f.read_text()) for f in sorted(files, key=lambda f: f.name)]
