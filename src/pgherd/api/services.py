"""create-, get-, update- and delete- of services, their list and the CA certificate."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from msgspec import UNSET

from pgherd.api import render
from pgherd.api.operations import Operations
from pgherd.api.request import Request
from pgherd.errors import Incorrect, NotFound, Unsupported
from pgherd.model import name as names
from pgherd.model.moment import read_moment
from pgherd.model.pg_settings import too_new
from pgherd.model.plan import PLANS, plan_named
from pgherd.model.pool import check_sum
from pgherd.model.service import Change, Maintenance
from pgherd.settings import Settings
from pgherd.store.db import AsyncDb
from pgherd.workflows import create, delete, maintenance, power, update
from pgherd.workflows.forks import Fork

#: Fields of the contract that this version refuses, each with the values that change nothing and so may be sent.
_NOT_YET: dict[str, tuple[Any, ...]] = {
    "integrations": ([],),
    "migration": (),
}


def read_change(body: dict[str, Any]) -> Change:
    """The request's body in our words. Raises Incorrect or Unsupported, naming the field."""
    for field, harmless in _NOT_YET.items():
        if field in body and body[field] not in harmless:
            raise Unsupported(f"{field}: is not available yet; leave it out.")
    fields: dict[str, Any] = {
        ours: body[theirs]
        for theirs, ours in (
            ("plan", "plan"),
            ("version", "version"),
            ("termination-protection", "termination_protection"),
            ("work-mem", "work_mem"),
            ("shared-buffers-percentage", "shared_buffers_percentage"),
            ("pg-settings", "pg_settings"),
            ("pgbouncer-settings", "pgbouncer_settings"),
            ("pgaudit-settings", "pgaudit_settings"),
            ("pglookout-settings", "pglookout_settings"),
            ("timescaledb-settings", "timescaledb_settings"),
            ("synchronous-replication", "synchronous_replication"),
            ("variant", "variant"),
            ("admin-password", "admin_password"),
        )
        if theirs in body
    }
    if "plan" in fields:
        _check_plan(fields["plan"])
    if "ip-filter" in body:
        fields["ip_filter"] = names.ip_filter(body["ip-filter"])
    if "admin-username" in body:
        fields["admin_username"] = names.admin_username(body["admin-username"])
    if "maintenance" in body:
        slot = body["maintenance"]
        fields["maintenance"] = Maintenance(slot["dow"], names.maintenance_time(slot["time"]))
    schedule = body.get("backup-schedule", {})
    for theirs, ours in (("backup-hour", "backup_hour"), ("backup-minute", "backup_minute")):
        if schedule.get(theirs) is not None:
            fields[ours] = schedule[theirs]
    return Change(**fields)


def read_fork(body: dict[str, Any]) -> Fork | None:
    """The service and the time to begin from, if the request names any. Raises Incorrect."""
    source, time = body.get("fork-from-service"), body.get("recovery-backup-time")
    moment = None if time is None else read_moment(time, "recovery-backup-time")
    if not source:
        if moment is not None:
            raise Incorrect("recovery-backup-time: needs fork-from-service, the service whose data of then is wanted.")
        if source is not None:
            raise Incorrect("fork-from-service: must be the name of a service; leave it out for an empty one.")
        return None
    return Fork(source, moment)


def _check_plan(wanted: str) -> None:
    plan = plan_named(wanted)
    if not plan.offered:
        others = ", ".join(name for name, known in PLANS.items() if known.offered)
        raise Unsupported(f"plan: {wanted} has {plan.nodes} nodes, which is not available yet; allowed: {others}.")


class Services:
    """The handlers of one API process."""

    def __init__(self, settings: Settings, db: AsyncDb, operations: Operations) -> None:
        self._settings = settings
        self._db = db
        self._operations = operations

    async def create(self, request: Request) -> object:
        """create-dbaas-service-pg"""
        name = names.service_name(request.params["name"])
        change = read_change(request.body)
        fork = read_fork(request.body)
        if change.pgbouncer_settings is not UNSET:
            limit = plan_named(str(change.plan)).max_connections
            check_sum((), change.pgbouncer_settings, limit, "pgbouncer-settings")
        return await self._operations.open(request, partial(_create, name, change, fork))

    async def update(self, request: Request) -> object:
        """update-dbaas-service-pg"""
        change = read_change(request.body)
        return await self._operations.open(request, partial(_update, request.params["name"], change))

    async def faults(self, request: Request) -> list[str]:
        """What a body that breaks the contract asks of a PostgreSQL that is too old for it as well."""
        version, settings = request.body.get("version", self._settings.default_version), request.body.get("pg-settings")
        if request.operation_id == "update-dbaas-service-pg":
            owner, name = request.key.organization_id, request.params["name"]
            row = await self._db.row("views", organization_id=owner, name=name)
            version = row["wish"]["version"] if row else ""
        if not isinstance(settings, dict) or not isinstance(version, str) or not re.fullmatch(r"\d\d", version):
            return []
        return list(too_new(settings, int(version)))

    async def delete(self, request: Request) -> object:
        """delete-dbaas-service and delete-dbaas-service-pg"""
        return await self._operations.open(request, partial(_delete, request.params["name"]))

    async def maintain(self, request: Request) -> object:
        """start-dbaas-pg-maintenance"""
        return await self._operations.open(request, partial(_maintain, request.params["name"]))

    async def stop(self, request: Request) -> object:
        """stop-service"""
        return await self._operations.open(request, partial(_power, request.params["name"], True))

    async def start(self, request: Request) -> object:
        """start-service"""
        return await self._operations.open(request, partial(_power, request.params["name"], False))

    async def get(self, request: Request) -> object:
        """get-dbaas-service-pg"""
        row = await self._db.row("views", organization_id=request.key.organization_id, name=request.params["name"])
        if row is None:
            raise NotFound("Service does not exist")
        return render.service(row, self._settings, request.key.organization)

    async def list(self, request: Request) -> object:
        """list-dbaas-services"""
        rows = await self._db.rows("views", organization_id=request.key.organization_id, name=None)
        return {"dbaas-services": [render.common(row, self._settings) for row in rows]}

    async def ca_certificate(self, request: Request) -> object:
        """get-dbaas-ca-certificate: one CA an organization"""
        row = await self._db.row("ca_certificate", id=request.key.organization_id)
        if row is None:
            raise NotFound("Organization does not exist")
        return {"certificate": row["ca_certificate"]}


def _create(name: str, change: Change, fork: Fork | None, app: Any, caller: Any, operation: Any) -> Any:
    return create.request(app, caller, operation, name, change, fork)


def _update(name: str, change: Change, app: Any, caller: Any, operation: Any) -> Any:
    return update.request(app, caller, operation, name, change)


def _delete(name: str, app: Any, caller: Any, operation: Any) -> Any:
    return delete.request(app, caller, operation, name)


def _power(name: str, stop: bool, app: Any, caller: Any, operation: Any) -> Any:
    return power.request(app, caller, operation, name, stop=stop)


def _maintain(name: str, app: Any, caller: Any, operation: Any) -> Any:
    return maintenance.request(app, caller, operation, name)
