"""Connection pools of a service: create, change, delete."""

from __future__ import annotations

from functools import partial
from typing import Any

from pgherd.api.operations import Operations
from pgherd.api.request import Handler, Request
from pgherd.model import name as names
from pgherd.model.pool import MODE, SIZE
from pgherd.spec import Pool
from pgherd.workflows import pools
from pgherd.workflows.pools import PoolChange


class Pools:
    """The handlers of one API process."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {
            "create-dbaas-pg-connection-pool": self.create,
            "update-dbaas-pg-connection-pool": self.update,
            "delete-dbaas-pg-connection-pool": self.delete,
        }

    async def create(self, request: Request) -> object:
        """create-dbaas-pg-connection-pool"""
        body = request.body
        pool = Pool(
            names.pool_name(body["name"]),
            body["database-name"],
            body.get("mode", MODE),
            body.get("size", SIZE),
            body.get("username", ""),
        )
        return await self._operations.open(request, partial(_create, request.params["service-name"], pool))

    async def update(self, request: Request) -> object:
        """update-dbaas-pg-connection-pool"""
        wire = {"database": "database-name", "mode": "mode", "size": "size", "username": "username"}
        change = PoolChange(**{ours: request.body[theirs] for ours, theirs in wire.items() if theirs in request.body})
        accept = partial(_update, request.params["service-name"], request.params["connection-pool-name"], change)
        return await self._operations.open(request, accept)

    async def delete(self, request: Request) -> object:
        """delete-dbaas-pg-connection-pool"""
        accept = partial(_delete, request.params["service-name"], request.params["connection-pool-name"])
        return await self._operations.open(request, accept)


def _create(service: str, pool: Pool, app: Any, caller: Any, operation: Any) -> Any:
    return pools.create(app, caller, operation, service, pool)


def _update(service: str, name: str, change: PoolChange, app: Any, caller: Any, operation: Any) -> Any:
    return pools.update(app, caller, operation, service, name, change)


def _delete(service: str, name: str, app: Any, caller: Any, operation: Any) -> Any:
    return pools.delete(app, caller, operation, service, name)
