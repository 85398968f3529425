"""Nodes that hosts have and the metadata does not know: shown with their hosts, adopted or forgotten by an operator."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID, uuid4

import anyio.to_thread
import msgspec
from psycopg.rows import DictRow

from pgherd.api.notifications import timestamp
from pgherd.api.operations import Ends
from pgherd.api.request import Handler, Request
from pgherd.errors import Conflict, Forbidden, NotFound, PgherdError
from pgherd.spec import UnknownNode
from pgherd.store.db import AsyncDb
from pgherd.workflows import adopt
from pgherd.workflows.app import App, Caller

#: Seconds that the answer to an adoption waits for its end.
HOLD = 20.0


class UnknownNodes:
    """The handlers of one API process."""

    def __init__(self, app: App, db: AsyncDb, ends: Ends) -> None:
        self._app, self._db, self._ends = app, db, ends

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {"adopt-node": self.adopt, "forget-node": self.forget}

    async def adopt(self, request: Request) -> object:
        """adopt-node"""
        _operators_only(request)
        caller = Caller(request.key.organization_id, request.key.organization, request.key.id, request.signature)
        body = request.body
        accept = partial(
            adopt.request, self._app, caller, uuid4(), request.params["host"], _id(request),
            body.get("organization", ""), body.get("name", ""),
        )  # fmt: skip
        operation, organization = await anyio.to_thread.run_sync(accept)

        async def look() -> DictRow:
            row = await self._db.row("operation", id=operation, organization_id=organization)
            if row is None:
                raise NotFound("Operation does not exist")
            return row

        row = await self._ends.wait(operation, look, HOLD)
        if row["state"] in ("failure", "timeout"):
            raise Conflict(f"The service is known again, and does not run as it should: {row['message']}")
        return {"state": row["state"], "service": row["service"], "id": str(row["id"])}

    async def forget(self, request: Request) -> object:
        """forget-node"""
        _operators_only(request)
        host, node = request.params["host"], _id(request)
        row = await self._db.row("doom_unknown_node", host=host, node=node)
        if row is None:
            raise NotFound(f"Host {host} reports no unknown node of this id.")
        return {"message": "The host deletes the node with its data."}


def _id(request: Request) -> UUID:
    try:
        return UUID(request.params["node"])
    except ValueError:
        raise NotFound("No host reports an unknown node of this id.") from None


def _operators_only(request: Request) -> None:
    if request.key.role != "operator":
        raise Forbidden("Only a key of role operator may do this.")


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """An unknown node as `list-hosts` shows it; a report that cannot be read shows its id alone."""
    facts: dict[str, Any] = {"id": str(row["id"]), "seen-at": timestamp(row["seen_at"])}
    facts["state"] = "being deleted" if row["doomed"] else "unknown"
    try:
        found = msgspec.convert(row["report"], UnknownNode)
    except (msgspec.ValidationError, PgherdError):
        return facts
    spec, status = found.spec, found.status
    facts |= {"service-id": spec.service_id, "version": spec.version, "port": spec.port}
    if spec.about is not None:
        plan = spec.about.wish.get("plan", "")
        facts |= {"organization": spec.about.organization, "service": spec.about.service, "plan": str(plan)}
    if status is not None:
        facts["disk-used"] = status.disk_used
        facts["state"] = facts["state"] if row["doomed"] else status.state
    return facts
