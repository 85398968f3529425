"""`pgherd service psql`: psql with the service's address, its CA and a revealed password.

Password and certificate are handed over in files without a name (memfd), so that neither appears in an
argument list or on a disk, and nothing is left behind however psql ends.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pgherd.cli.client import Api
from pgherd.cli.outcome import CliError, Exit

#: Variables of the caller that would send psql elsewhere or let it skip our password.
_FOREIGN = ("PGPASSWORD", "PGCLUSTER", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGREQUIRESSL", "PGSSLCRL")


def start(api: Api, name: str, user: str, database: str, pool: str, arguments: Sequence[str]) -> None:
    """Become psql, connected to the service or to one of its pools; returns never. Raises CliError."""
    program = find_program()
    service = api.call("get-dbaas-service-pg", name)
    if service.get("state") == "poweroff":
        notices = [str(note.get("message")) for note in service.get("notifications") or []]
        raise CliError(Exit.FAILED, f"{name} does not run.", " ".join(notices))
    params = service.get("uri-params") or {}
    if not params.get("host") or not params.get("port"):
        hint = f"Wait for it: pgherd service wait {name}"
        raise CliError(Exit.FAILED, f"{name} has no address yet; its state is {service.get('state')}.", hint)
    if pool:
        params = {**params, **through(service, pool)}
        database = pool
    user = user or params.get("user") or "avnadmin"
    password = api.call("reveal-dbaas-postgres-user-password", name, user)["password"]
    authority = api.call("get-dbaas-ca-certificate")["certificate"]
    files = {
        "PGPASSFILE": _unnamed("passfile", passfile(params, user, password)),
        "PGSSLROOTCERT": _unnamed("ca", authority),
    }
    environ = environment(os.environ, params, user, database, files)
    os.execve(program, ["psql", *arguments], environ)  # noqa: S606 - an argument list, no shell


def through(service: Mapping[str, Any], pool: str) -> dict[str, str]:
    """What differs from the service's own address when the connection goes through a pool. Raises CliError."""
    for one in service.get("connection-pools") or []:
        if one["name"] == pool:
            port = urlsplit(one["connection-uri"]).port
            return {"port": str(port)} | ({"user": one["username"]} if one.get("username") else {})
    known = ", ".join(one["name"] for one in service.get("connection-pools") or []) or "none"
    raise CliError(Exit.NOT_FOUND, f"{service['name']} has no connection pool {pool}; there are: {known}.")


def environment(
    caller: Mapping[str, str], params: Mapping[str, Any], user: str, database: str, files: Mapping[str, str]
) -> dict[str, str]:
    """The environment for psql: the caller's, with the connection to this service in libpq's variables."""
    kept = {name: value for name, value in caller.items() if name not in _FOREIGN}
    return {
        **kept,
        **files,
        "PGHOST": str(params["host"]),
        "PGPORT": str(params["port"]),
        "PGUSER": user,
        "PGDATABASE": database or str(params.get("dbname") or "defaultdb"),
        "PGSSLMODE": "verify-full",
    }


def passfile(params: Mapping[str, Any], user: str, password: str) -> str:
    """A line of libpq's password file that gives the password to this host, port and user alone."""
    fields = [str(params["host"]), str(params["port"]), "*", user, password]
    escaped = [field if field == "*" else field.replace("\\", "\\\\").replace(":", "\\:") for field in fields]
    return ":".join(escaped) + "\n"


def find_program() -> str:
    """The path of psql: the one in PATH, else that of the newest PostgreSQL on this machine. Raises CliError."""
    found = shutil.which("psql")
    if found:
        return found
    places = ("usr/lib/postgresql/*/bin/psql", "usr/local/lib/pgherd/*/usr/lib/postgresql/*/bin/psql")
    installed = sorted((p for place in places for p in Path("/").glob(place)), key=lambda path: int(path.parts[-3]))
    if not installed:
        raise CliError(Exit.FAILED, "psql is not installed.", "Debian has it in the package postgresql-client.")
    return str(installed[-1])


def _unnamed(name: str, text: str) -> str:
    descriptor = os.memfd_create(name, 0)  # without CLOEXEC: psql opens it
    os.fchmod(descriptor, 0o600)  # libpq ignores a password file that others may read
    os.write(descriptor, text.encode())
    return f"/dev/fd/{descriptor}"
