"""`/pgherd/v1/service/{name}/backup`: a service's backups, one by hand, and their proof."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from pgherd.api.notifications import timestamp
from pgherd.api.operations import Operations
from pgherd.api.request import Handler, Request
from pgherd.errors import NotFound
from pgherd.model.backup import window
from pgherd.model.service import Wish
from pgherd.spec import RepositoryStatus, Verification
from pgherd.store.db import AsyncDb
from pgherd.workflows import backup, verify


class Backups:
    """The handlers of one API process."""

    def __init__(self, db: AsyncDb, operations: Operations) -> None:
        self._db, self._operations = db, operations

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {"list-backups": self.list, "create-backup": self.create, "verify-backups": self.verify}

    async def create(self, request: Request) -> object:
        """create-backup"""
        accept = partial(_create, request.params["name"], request.body.get("full"))
        return await self._operations.open(request, accept)

    async def verify(self, request: Request) -> object:
        """verify-backups"""
        return await self._operations.open(request, partial(_verify, request.params["name"]))

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
    verifications: list[dict[str, Any]] = row["verifications"]
    sound = {found["backup"]: _moment(found["at"]) for found in verifications if found["state"] == "sound"}
    earliest, latest = window(known.backups, known.archived_at, known.gap_at)
    shown: dict[str, Any] = {
        "backups": [
            {
                "name": b.name, "time": b.ended_at, "type": "incremental" if b.parent else "full", "size": b.size,
                "stored": b.stored, "damaged": b.damaged, **({"verified-at": sound[b.name]} if b.name in sound else {}),
            }
            for b in known.backups
        ],
        "schedule": {"hour": schedule.hour, "minute": schedule.minute},
        "repository": row["kind"] or "",
        "segments-waiting": known.waiting,
    }  # fmt: skip
    if earliest:
        shown["window"] = {"earliest": earliest, "latest": latest}
    for field, value in (("gap-at", known.gap_at), ("problem", " ".join(filter(None, (known.problem, known.lost))))):
        if value:
            shown[field] = value
    if verifications:
        shown["verification"] = _verification(verifications[-1])
    if row["verifying"] is not None:
        shown["verifying"] = _running(status, row["verifying"])
    if row["operation"] is not None:
        shown["running"] = _running(status, row["operation"])
    return shown


def _running(status: dict[str, Any], operation: UUID) -> dict[str, Any]:
    jobs = [job for job in status.get("jobs", []) if job["id"] == str(operation)]
    return {
        "operation": str(operation),
        "state": jobs[0]["state"] if jobs else "waiting",
        "progress": jobs[0].get("progress", 0.0) if jobs else 0.0,
    }


def _verification(row: dict[str, Any]) -> dict[str, Any]:
    """The last proof: what was restored and recovered, and what was found."""
    found = msgspec.convert(row["report"], Verification)
    shown: dict[str, Any] = {
        "at": _moment(row["at"]), "state": row["state"], "backup": found.backup, "seconds": found.seconds,
        "databases": found.databases, "tables": found.tables, "rows": found.rows,
        "problems": found.problems, "broken": msgspec.to_builtins(found.broken),
    }  # fmt: skip
    if found.impossible:
        shown["problems"] = [*found.problems, found.impossible]
    for field, value in (("lsn", found.lsn), ("recovered-to", found.recovered_to)):
        if value:
            shown[field] = value
    return shown


def _moment(text: str) -> str:
    """A time as the metadata's JSON has it."""
    return timestamp(datetime.fromisoformat(text))


def _verify(name: str, app: Any, caller: Any, operation: Any) -> Any:
    return verify.request(app, caller, operation, name)


def _create(name: str, full: bool | None, app: Any, caller: Any, operation: Any) -> Any:
    return backup.request(app, caller, operation, name, full)
