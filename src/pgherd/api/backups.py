"""`/pgherd/v1/service/{name}/backup`: a service's backups, and one by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from pgherd.api.operations import Operations
from pgherd.api.request import Handler, Request
from pgherd.errors import NotFound
from pgherd.model.backup import window
from pgherd.model.service import Wish
from pgherd.spec import RepositoryStatus
from pgherd.store.db import AsyncDb
from pgherd.workflows import backup


class Backups:
    """The handlers of one API process."""

    def __init__(self, db: AsyncDb, operations: Operations) -> None:
        self._db, self._operations = db, operations

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {"list-backups": self.list, "create-backup": self.create}

    async def create(self, request: Request) -> object:
        """create-backup"""
        accept = partial(_create, request.params["name"], request.body.get("full"))
        return await self._operations.open(request, accept)

    async def list(self, request: Request) -> object:
        """list-backups: as the service's host last saw them"""
        row = await self._db.row("backups", organization_id=request.key.organization_id, name=request.params["name"])
        if row is None:
            raise NotFound("Service does not exist")
        return _shown(row)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    status = row["status"] or {}
    known = msgspec.convert(status.get("repository") or {}, RepositoryStatus)
    schedule = msgspec.convert(row["wish"], Wish).backup
    earliest, latest = window(known.backups, known.archived_at, known.gap_at)
    shown: dict[str, Any] = {
        "backups": [
            {
                "name": b.name, "time": b.ended_at, "type": "incremental" if b.parent else "full", "size": b.size,
                "stored": b.stored, "damaged": b.damaged,
            }
            for b in known.backups
        ],
        "schedule": {"hour": schedule.hour, "minute": schedule.minute},
        "repository": row["kind"] or "",
        "segments-waiting": known.waiting,
    }  # fmt: skip
    if earliest:
        shown["window"] = {"earliest": earliest, "latest": latest}
    for field, value in (("gap-at", known.gap_at), ("problem", known.problem)):
        if value:
            shown[field] = value
    if row["operation"] is not None:
        jobs = [job for job in status.get("jobs", []) if job["id"] == str(row["operation"])]
        shown["running"] = {
            "operation": str(row["operation"]),
            "state": jobs[0]["state"] if jobs else "waiting",
            "progress": jobs[0].get("progress", 0.0) if jobs else 0.0,
        }
    return shown


def _create(name: str, full: bool | None, app: Any, caller: Any, operation: Any) -> Any:
    return backup.request(app, caller, operation, name, full)
