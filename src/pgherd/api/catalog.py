"""What can be ordered: zones, service types with their plans and versions, and the schemas of settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from pgherd.api.request import Handler, Request
from pgherd.api.settings_schemas import served
from pgherd.contract.document import Contract
from pgherd.errors import NotFound
from pgherd.model.plan import PLANS, Plan

#: Answers with the major versions that the hosts offer.
Versions = Callable[[], Awaitable[Sequence[str]]]


class Catalog:
    """The handlers of the catalog. All but the versions, which the hosts report, is computed once."""

    def __init__(self, contract: Contract, zone: str, api_url: str, versions: Versions, default: str) -> None:
        self._versions, self._default = versions, default
        self._known = set(contract.schema("dbaas-pg-target-versions")["enum"])  # a host may have others
        self._plans = [_plan(plan, zone) for plan in PLANS.values()]
        zones = [{"name": zone, "api-endpoint": api_url, "sos-endpoint": ""}]
        self._zones = msgspec.json.encode({"zones": zones})
        self._schema = contract.schema
        self._settings: dict[tuple[str, ...], bytes] = {}  # by the versions that are offered, which seldom change

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {
            "list-zones": self._list_zones,
            "list-dbaas-service-types": self._list_types,
            "get-dbaas-service-type": self._get_type,
            "get-dbaas-settings-pg": self._get_settings,
        }

    async def _list_zones(self, request: Request) -> object:
        return self._zones

    async def _list_types(self, request: Request) -> object:
        return {"dbaas-service-types": [await self._type()]}

    async def _get_type(self, request: Request) -> object:
        if request.params["service-type-name"] != "pg":
            raise NotFound("Service type does not exist; this instance offers pg only.")
        return await self._type()

    async def _get_settings(self, request: Request) -> object:
        versions = await self._offered()
        if versions not in self._settings:
            self._settings = {versions: msgspec.json.encode({"settings": served(self._schema, versions)})}
        return self._settings[versions]

    async def _offered(self) -> tuple[str, ...]:
        return tuple(sorted(set(await self._versions()) & self._known, key=int))

    async def _type(self) -> dict[str, Any]:
        versions = await self._offered()
        return {
            "name": "pg",
            "description": "PostgreSQL - Object-Relational Database Management System",
            "available-versions": versions,
            "plans": self._plans,
        } | ({"default-version": self._default} if self._default in versions else {})  # none: a create must name one


def _plan(plan: Plan, zone: str) -> dict[str, Any]:
    return {
        "name": plan.name,
        "node-count": plan.nodes,
        "node-cpu-count": plan.cpus,
        "node-memory": plan.memory_bytes,
        "disk-space": plan.disk_bytes,
        "max-connections": plan.max_connections,  # a field of our own
        "authorized": plan.offered,  # what the contract has to say that a plan cannot be ordered
        "zones": [zone],
        "backup-config": {
            "interval": plan.backups.interval,
            "max-count": plan.backups.count,
            "recovery-mode": plan.backups.mode,
        },
    }
