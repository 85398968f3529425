"""What a host is told of where a node's data comes from."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from psycopg.rows import DictRow

from pgherd import spec
from pgherd.errors import Conflict
from pgherd.model.origin import Origin
from pgherd.model.plan import PLANS
from pgherd.store.db import Transaction
from pgherd.workflows.repositories import ensure_repository, repository_for
from pgherd.workflows.run import Run


def origin_for(run: Run, tx: Transaction, row: DictRow, node: DictRow) -> spec.Origin | None:
    """None unless this operation is the one that gives the service (a row) its data. Raises Conflict when the service
    that it is to come from was deleted before the host had it."""
    if not row["origin"] or row["origin"]["id"] != str(run.operation):
        return None
    origin = msgspec.convert(row["origin"], Origin)
    if origin.kind != "fork":
        source = "" if origin.kind == "return" else str(node["id"])
        return spec.Origin(
            origin.id, source, None, origin.target, origin.timeline, undo=origin.kind == "undo", own=True,
            back=origin.kind == "return",
        )  # fmt: skip
    known: dict[str, Any] = (node["spec"] or {}).get("origin") or {}
    source_row = tx.row("service_by_id", id=UUID(origin.service))
    if source_row is None or source_row["deleted_at"] is not None:
        if ((node["status"] or {}).get("origin") or {}).get("id") == origin.id:
            return msgspec.convert(known, spec.Origin)
        raise Conflict("fork-from-service: the service was deleted before its data was taken over.")
    plan = PLANS[source_row["wish"]["plan"]]
    ensure_repository(run.app, tx, source_row["id"])  # a service of a version that knew nothing of backups
    repository = repository_for(run.app, tx, source_row["id"], plan, node["public_key"], known.get("repository"))
    beside = [one for one in tx.rows("nodes", service_id=source_row["id"]) if one["host_id"] == node["host_id"]]
    return spec.Origin(
        origin.id, str(beside[0]["id"]) if beside else "", repository, origin.target, origin.timeline
    )  # fmt: skip
