"""What the API answers, in words for people. Pure: from JSON to rows and facts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pgherd.cli.waiting import describe_node

SERVICE_HEADERS = ("NAME", "STATE", "TYPE", "PLAN", "ZONE", "PROTECTED", "CREATED")


def service_rows(services: Sequence[dict[str, Any]], now: datetime) -> list[tuple[str, ...]]:
    """One row a service, by name."""
    return [
        (
            service["name"],
            service.get("state", "unknown"),
            service["type"],
            service["plan"],
            service.get("zone", ""),
            yes(service.get("termination-protection")),
            age(service.get("created-at"), now).rpartition("(")[2].rstrip(")"),
        )
        for service in sorted(services, key=lambda one: str(one["name"]))
    ]


def service_facts(service: dict[str, Any], now: datetime) -> list[tuple[str, object]]:
    """All that a person wants to know about a PostgreSQL service."""
    return [
        ("Name", service["name"]),
        ("State", service.get("state")),
        ("Nodes", [_node(node) for node in service.get("node-states") or []]),
        ("Plan", f"{service['plan']}{_sizes(service)}"),
        ("Version", service.get("version")),
        ("Zone", service.get("zone")),
        ("URI", service.get("uri")),
        ("Databases", ", ".join(service.get("databases") or [])),
        ("Users", ", ".join(f"{user['username']} ({user['type']})" for user in service.get("users") or [])),
        ("Pools", ", ".join(_pool(pool) for pool in service.get("connection-pools") or [])),
        ("IP filter", ", ".join(service.get("ip-filter") or []) or "empty: nobody from outside"),
        ("Connections", service.get("max-connections")),
        ("Protected", yes(service.get("termination-protection"))),
        ("Maintenance", _maintenance(service.get("maintenance") or {})),
        ("Updates", [_update(update) for update in (service.get("maintenance") or {}).get("updates") or []]),
        ("Backups at", _backup_time(service.get("backup-schedule") or {})),
        ("Work memory", _with_unit(service.get("work-mem"), "MB")),
        ("Shared buffers", _with_unit(service.get("shared-buffers-percentage"), "% of the memory")),
        ("Settings", _settings(service, "pg")),
        ("PgBouncer", _settings(service, "pgbouncer")),
        ("Audit log", _settings(service, "pgaudit")),
        ("TimescaleDB", _settings(service, "timescaledb")),
        ("Failover", _settings(service, "pglookout")),
        ("Notices", [note.get("message") for note in service.get("notifications") or []]),
        ("Created", age(service.get("created-at"), now)),
        ("Changed", age(service.get("updated-at"), now)),
    ]


def _settings(service: dict[str, Any], program: str) -> list[str]:
    return [f"{name} = {value}" for name, value in flat(service.get(f"{program}-settings") or {})]


def operation_facts(operation: dict[str, Any]) -> list[tuple[str, object]]:
    """An operation: its state, and why it failed."""
    reference = operation.get("reference") or {}
    return [
        ("Operation", operation.get("id")),
        ("State", operation.get("state")),
        ("Reason", operation.get("reason")),
        ("Message", operation.get("message")),
        ("About", reference.get("link")),
    ]


def yes(value: object) -> str:
    """`yes` or `no`."""
    return "yes" if value else "no"


def age(stamp: str | None, now: datetime) -> str:
    """A time in UTC, to the second, with how long ago it was."""
    if not stamp:
        return ""
    try:
        moment = datetime.fromisoformat(stamp).astimezone(UTC)
    except ValueError:
        return stamp
    seconds = int((now - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{moment:%Y-%m-%d %H:%M:%S} ({seconds // size} {unit} ago)"
    return f"{moment:%Y-%m-%d %H:%M:%S} (now)"


PLAN_HEADERS = ("PLAN", "NODES", "CPUS", "MEMORY", "DISK", "CONNECTIONS", "BACKUPS KEPT", "AVAILABLE")


def plan_row(plan: dict[str, Any]) -> tuple[object, ...]:
    """A plan of the catalog as cells."""
    return (
        plan["name"],
        plan["node-count"],
        plan["node-cpu-count"],
        size(plan["node-memory"]),
        size(plan["disk-space"]),
        plan.get("max-connections", ""),
        plan["backup-config"]["max-count"],
        "yes" if plan.get("authorized", True) else "not yet",
    )


def size(count: int) -> str:
    """A number of bytes in GiB or MiB."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def flat(settings: dict[str, Any], before: str = "") -> list[tuple[str, object]]:
    """A settings object as dotted names and values."""
    pairs: list[tuple[str, object]] = []
    for key, value in sorted(settings.items()):
        if isinstance(value, dict):
            pairs += flat(value, f"{before}{key}.")
        else:
            pairs.append((before + key, str(value).lower() if isinstance(value, bool) else value))
    return pairs


def with_password(uri: str, password: str) -> str:
    """A service's URI with the password put behind its user."""
    parts = urlsplit(uri)
    user, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:{quote(password, safe='')}@{place}"))


def _node(node: dict[str, Any]) -> str:
    role = f" [{node['role']}]" if node.get("role") else ""
    return describe_node(node) + role if not node.get("reason") else describe_node(node)


def _pool(pool: dict[str, Any]) -> str:
    return f"{pool['name']} ({pool['database']}, {pool['mode']}, {pool['size']})"


def _sizes(service: dict[str, Any]) -> str:
    sizes = []
    if count := service.get("node-count"):
        sizes.append(f"{count} node" + ("s" if count > 1 else ""))
    if cores := service.get("node-cpu-count"):
        sizes.append(f"{cores} CPU" + ("s" if cores > 1 else ""))
    for key, what in (("node-memory", "memory"), ("disk-size", "disk")):
        if service.get(key):
            sizes.append(f"{size(service[key])} {what}")
    return f" ({', '.join(sizes)})" if sizes else ""


def _maintenance(maintenance: dict[str, Any]) -> str:
    return f"{maintenance['dow']} {maintenance.get('time', '')} UTC" if maintenance.get("dow") else ""


def _update(update: dict[str, Any]) -> str:
    return f"{update.get('description')}; at {update.get('start-at')}, by {update.get('deadline')} at the latest"


def _backup_time(schedule: dict[str, Any]) -> str:
    if "backup-hour" not in schedule:
        return ""
    return f"{schedule['backup-hour']:02}:{schedule.get('backup-minute', 0):02} UTC"


def _with_unit(value: object, unit: str) -> str:
    return f"{value} {unit}" if value is not None else ""
