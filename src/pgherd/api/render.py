"""A service in the contract's words: pure.

Only what is known is shown: wishes as accepted, sizes from the plan, the rest as the host last observed it.
"""

from __future__ import annotations

import datetime
from typing import Any
from urllib.parse import quote

import msgspec
from psycopg.rows import DictRow

from pgherd.api.notifications import notifications, timestamp
from pgherd.model.maintenance import Calendar, pending, start_after
from pgherd.model.plan import PLANS, Plan, memory
from pgherd.model.service import DEFAULT_DATABASE, Wish
from pgherd.settings import Settings

#: A node whose host said nothing for so long is shown as `unknown`. Seconds.
SILENT = 60

#: How long a node says that its data had to be made anew.
LOSS_SHOWN = datetime.timedelta(days=7)

_NODE_STATES = {"running": "running", "setting_up": "setting_up_vm", "starting": "setting_up_vm", "absent": "leaving"}


def operation(row: DictRow) -> dict[str, Any]:
    """An operation. `reason` stands in every failure and time-out: the Python client reads it without looking."""
    rendered = {
        "id": str(row["id"]),
        "state": row["state"],
        "reference": {
            "id": str(row["service_id"]),
            "link": f"/v2/dbaas-postgres/{quote(row['service'])}",
            "command": "get-dbaas-service-pg",
        },
    }
    if row["reason"]:
        rendered["reason"] = row["reason"]
    if row["message"]:
        rendered["message"] = row["message"]
    return rendered


def service(row: DictRow, settings: Settings, organization: str) -> dict[str, Any]:
    """The whole `dbaas-service-pg` object."""
    wish = msgspec.convert(row["wish"], Wish)
    plan = PLANS[wish.plan]
    nodes: list[dict[str, Any]] = row["nodes"]
    status = _status(nodes)
    host, port = settings.host_of(row["name"], organization), row["first_port"]
    pools: list[dict[str, Any]] = row["pools"]
    params = {"dbname": DEFAULT_DATABASE, "host": host, "port": str(port), "sslmode": "require", "user": wish.admin}
    uri = _uri(wish.admin, host, port, DEFAULT_DATABASE)
    host_memory = nodes[0]["host_memory"] if nodes and nodes[0]["host_memory"] else plan.memory_bytes
    effective = memory(plan, host_memory, settings.memory_cap_percent, wish.work_mem, wish.shared_buffers_percentage)
    return common(row, settings, wish, plan) | {
        "backup-schedule": {"backup-hour": wish.backup.hour, "backup-minute": wish.backup.minute},
        "backups": [
            {"backup-name": backup["name"], "backup-time": backup["ended_at"], "data-size": backup["size"]}
            for backup in (status.get("repository") or {}).get("backups", [])
        ],
        "components": [
            {"component": component, "host": host, "port": where, "route": "dynamic", "usage": "primary"}
            for component, where in (("pg", port), ("pgbouncer", port + 1))
            if component == "pg" or pools or wish.pgbouncer_settings.get("autodb_pool_size")
        ],
        "connection-info": {"uri": [uri], "params": [params], "standby": [], "syncing": []},
        "connection-pools": [
            pool | {"connection-uri": _uri(pool["username"] or wish.admin, host, port + 1, pool["name"])}
            for pool in pools
        ],
        "databases": status.get("databases", []),
        "ip-filter": wish.ip_filter,
        "maintenance": {
            "dow": wish.maintenance.dow,
            "time": wish.maintenance.time,
            "updates": _updates(row, wish, settings.maintenance_deadline_days),
        },
        "max-connections": status.get("max_connections") or plan.max_connections,
        "node-states": [_node(node, row["notice"]) for node in nodes],
        "pg-settings": wish.pg_settings,
        "pgaudit-settings": wish.pgaudit_settings,
        "pgbouncer-settings": wish.pgbouncer_settings,
        "pglookout-settings": wish.pglookout_settings,
        "prometheus-uri": {"host": host, "port": port + 3} if any(node["exporter"] for node in nodes) else {},
        "shared-buffers-percentage": wish.shared_buffers_percentage or 20,
        "synchronous-replication": wish.synchronous_replication,
        "timescaledb-settings": wish.timescaledb_settings,
        "uri": uri,
        "uri-params": params,
        "users": [
            {
                "type": "primary" if user["name"] == wish.admin else "normal",
                "username": user["name"],
                "allow-replication": user["replication"],
            }
            for user in status.get("users", [])
        ],
        "version": status.get("version") or _installed(nodes, wish.version),
        "work-mem": wish.work_mem or effective.work_mem,
    }


def _uri(user: str, host: str, port: int, database: str) -> str:
    """Without a password: that is revealed to those who may see it."""
    shown_host = f"[{host}]" if ":" in host else host
    return f"postgres://{quote(user, safe='')}@{shown_host}:{port}/{quote(database, safe='')}?sslmode=require"


def common(row: DictRow, settings: Settings, wish: Wish | None = None, plan: Plan | None = None) -> dict[str, Any]:
    """What the list of services shows of each."""
    wish = wish or msgspec.convert(row["wish"], Wish)
    plan = plan or PLANS[wish.plan]
    return {
        "name": row["name"],
        "type": "pg",
        "plan": wish.plan,
        "state": _state(row),
        "created-at": timestamp(row["created_at"]),
        "updated-at": timestamp(row["updated_at"]),
        "disk-size": plan.disk_bytes,
        "integrations": [],
        "node-count": plan.nodes,
        "node-cpu-count": plan.cpus,
        "node-memory": plan.memory_bytes,
        "notifications": notifications(row, plan),
        "termination-protection": wish.termination_protection,
        "zone": settings.zone,
    }


def _status(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The observation that speaks for the service; hosts' values are of NodeStatus, checked when reported."""
    return next((node["status"] for node in nodes if node["status"]), {})


def _state(row: DictRow) -> str:
    if row["stopped_at"] is not None:
        return "poweroff"
    if row["phase"] != "running":
        return str(row["phase"])
    running = all((node["status"] or {}).get("state") == "running" for node in row["nodes"])
    return "running" if running else "rebuilding"


def _node(node: dict[str, Any], notice: str) -> dict[str, Any]:
    """A node; one that is stopped says why, and its host may be silent."""
    status = node["status"] or {"state": "setting_up", "step": "waits for its host"}
    shown: dict[str, Any] = {"name": node["name"], "role": "master"}
    shown["state"] = _NODE_STATES.get(status["state"], "unknown")
    stopped = node["desired"] == "stopped"
    if stopped and status["state"] == "running":
        shown["state"] = "leaving"
    reason = status.get("reason") or (notice if stopped else "") or _remark(status)
    if node["age"] is not None and node["age"] > SILENT and not stopped:
        shown["state"], reason = "unknown", f"its host has not reported for {int(node['age'])} s"
    if shown["state"] == "setting_up_vm":
        begins = status.get("step") != "data"
        shown["state"] = "setting_up_vm" if begins else "syncing_data"
        shown["progress-updates"] = [{"phase": "prepare" if begins else "basebackup", "completed": False}]
        shown["step"] = status.get("step", "")
    if reason:
        shown["reason"] = reason
    return shown


def _updates(row: DictRow, wish: Wish, days: int) -> list[dict[str, str]]:
    """What waits for maintenance; how long it has waited is noted by a reconciler within half a minute.

    Nothing waits for a stopped service: no window touches it, and its next start begins with what is installed.
    """
    if row["stopped_at"] is not None:
        return []
    now = datetime.datetime.now(datetime.UTC)
    calendar = Calendar(wish.maintenance, str(row["id"]), days, row["maintained_for"])
    found = {}
    for node in row["nodes"]:
        for update in pending(node["status"] or {}, node, wish.version):
            since = datetime.datetime.fromisoformat(row["updates"].get(update.kind) or now.isoformat())
            found[update.kind] = {
                "description": update.description,
                "start-after": timestamp(start_after(since)),
                "start-at": timestamp(calendar.start_at(since, now)),
                "deadline": timestamp(calendar.deadline(since)),
            }
    return list(found.values())


def _remark(status: dict[str, Any]) -> str:
    """What is to be known of a node that runs: a repository that does not work, a loss of the last days, data aside."""
    origin, repository = status.get("origin") or {}, status.get("repository") or {}
    if troubles := [str(repository[name]) for name in ("problem", "lost") if repository.get(name)]:
        return " ".join(troubles)
    if any(backup.get("damaged") for backup in repository.get("backups", [])[-1:]):
        return f"Backup {repository['backups'][-1]['name']} met pages with a wrong checksum."
    if origin.get("lost") and datetime.datetime.now(datetime.UTC) - _time(origin["at"]) < LOSS_SHOWN:
        return str(origin["lost"])
    if origin.get("aside"):
        size = origin["aside"] / 2**20
        return f"Restored at {origin['at']}; {size:.0f} MiB of data from before are kept until you confirm or undo it."
    return ""


def _time(text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError:
        return datetime.datetime.fromtimestamp(0, datetime.UTC)


def _installed(nodes: list[dict[str, Any]], major: str) -> str:
    versions = (nodes[0]["versions"] or {}) if nodes else {}
    return str(versions.get(major, major))
