"""`/pgherd/v1/service/...`: restore a service in place, take that back or confirm it; bring a deleted one back."""

from __future__ import annotations

from functools import partial
from typing import Any

from pgherd.api.notifications import timestamp
from pgherd.api.operations import Operations
from pgherd.api.request import Handler, Request
from pgherd.api.roles import check_administrator
from pgherd.model import name as names
from pgherd.model.moment import read_moment
from pgherd.store.db import AsyncDb
from pgherd.workflows import restore, undelete


class Restores:
    """The handlers of one API process."""

    def __init__(self, db: AsyncDb, operations: Operations) -> None:
        self._db, self._operations = db, operations

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {
            "restore-service": self.restore,
            "undo-service-restore": self.undo,
            "confirm-service-restore": self.confirm,
            "undelete-service": self.undelete,
            "list-kept-services": self.kept,
        }

    async def restore(self, request: Request) -> object:
        """restore-service"""
        moment = read_moment(request.body["to"], "to")
        return await self._open(request, partial(_restore, request.params["name"], moment))

    async def undo(self, request: Request) -> object:
        """undo-service-restore"""
        return await self._open(request, partial(_undo, request.params["name"]))

    async def confirm(self, request: Request) -> object:
        """confirm-service-restore"""
        return await self._open(request, partial(_confirm, request.params["name"]))

    async def undelete(self, request: Request) -> object:
        """undelete-service"""
        return await self._open(request, partial(_undelete, names.service_name(request.params["name"])))

    async def kept(self, request: Request) -> object:
        """list-kept-services"""
        check_administrator(request.key.role)
        rows = await self._db.rows("kept_services", organization_id=request.key.organization_id)
        return {
            "services": [
                {
                    "name": row["name"],
                    "deleted-at": timestamp(row["deleted_at"]),
                    "kept-until": timestamp(row["kept_until"]),
                }
                for row in rows
            ]
        }

    async def _open(self, request: Request, accept: Any) -> object:
        check_administrator(request.key.role)
        return await self._operations.open(request, accept)


def _restore(name: str, moment: Any, app: Any, caller: Any, operation: Any) -> Any:
    return restore.request(app, caller, operation, name, moment)


def _undo(name: str, app: Any, caller: Any, operation: Any) -> Any:
    return restore.undo(app, caller, operation, name)


def _confirm(name: str, app: Any, caller: Any, operation: Any) -> Any:
    return restore.confirm(app, caller, operation, name)


def _undelete(name: str, app: Any, caller: Any, operation: Any) -> Any:
    return undelete.request(app, caller, operation, name)
