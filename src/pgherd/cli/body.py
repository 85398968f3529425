"""The request bodies of create and update, from the options that were given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pgherd.cli.client import Api, document
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.secrets_in import read_secret
from pgherd.cli.values import typed_settings

_PLAIN = (
    "plan", "version", "admin_username", "termination_protection", "work_mem", "shared_buffers_percentage", "variant",
    "synchronous_replication",
)  # fmt: skip
_PROGRAMS = ("pg", "pgbouncer", "pgaudit", "pglookout", "timescaledb")


def create_body(api: Api, wish: Mapping[str, Any]) -> dict[str, Any]:
    """The body of create-dbaas-service-pg. Raises CliError."""
    body = _shared(api, wish)
    if wish.get("fork_from") is not None:
        body["fork-from-service"] = wish["fork_from"]
        if "plan" not in body and wish["fork_from"]:
            body["plan"] = api.call("get-dbaas-service-pg", wish["fork_from"])["plan"]
    elif "plan" not in body:
        raise CliError(Exit.USAGE, "Which plan? Say --plan, such as --plan hobbyist-2.", "See: pgherd service plans")
    if wish.get("to") is not None:
        body["recovery-backup-time"] = wish["to"]
    if wish.get("admin_password") is not None:
        body["admin-password"] = read_secret(wish["admin_password"], "Admin password")
    return body


def update_body(api: Api, wish: Mapping[str, Any]) -> dict[str, Any]:
    """The body of update-dbaas-service-pg. Raises CliError when nothing is to change."""
    body = _shared(api, wish)
    if wish.get("clear_ip_filter"):
        if wish.get("ip_filter"):
            raise CliError(Exit.USAGE, "--ip-filter and --clear-ip-filter contradict each other.")
        body["ip-filter"] = []
    if not body:
        raise CliError(Exit.USAGE, "Nothing to change.", "Say what: pgherd service update --help")
    return body


def _shared(api: Api, wish: Mapping[str, Any]) -> dict[str, Any]:
    body = {key.replace("_", "-"): wish[key] for key in _PLAIN if wish.get(key) is not None}
    if wish.get("ip_filter"):
        body["ip-filter"] = wish["ip_filter"]
    backup = {f"backup-{part}": wish.get(f"backup_{part}") for part in ("hour", "minute")}
    if any(value is not None for value in backup.values()):
        body["backup-schedule"] = {key: value for key, value in backup.items() if value is not None}
    maintenance = _maintenance(wish.get("maintenance_dow"), wish.get("maintenance_time"))
    if maintenance:
        body["maintenance"] = maintenance
    for program in _PROGRAMS:
        if wish.get(f"{program}_setting"):
            body[f"{program}-settings"] = typed_settings(_schema(api, program), wish[f"{program}_setting"])
    return body


def _schema(api: Api, program: str) -> dict[str, Any]:
    """The settings that there are: as the API tells, else, for pgaudit, as the contract has them."""
    known: dict[str, Any] = api.call("get-dbaas-settings-pg")["settings"]
    return dict(known.get(program) or document()["components"]["schemas"][f"json-schema-{program}"])


def _maintenance(dow: str | None, time: str | None) -> dict[str, str]:
    if dow is None and time is None:
        return {}
    if dow is None or time is None:
        raise CliError(Exit.USAGE, "--maintenance-dow and --maintenance-time go together: the API takes both or none.")
    if not re.fullmatch(r"\d\d:\d\d(:\d\d)?", time):
        raise CliError(Exit.USAGE, f"--maintenance-time is HH:MM or HH:MM:SS in UTC, not {time!r}.")
    return {"dow": dow.lower(), "time": time if len(time) == 8 else f"{time}:00"}
