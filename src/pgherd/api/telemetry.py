"""Logs, metrics and the credentials for Prometheus of a service.

Logs lie on the hosts, in files that only they may read: a question goes to them through the metadata, and its answer is
waited for, bounded. Metrics are in the metadata already.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.api.notifications import timestamp
from pgherd.api.operations import Ends
from pgherd.api.request import Handler, Request
from pgherd.errors import Conflict, Fault, NotFound
from pgherd.model.logs import Page, merge, read_offset, write_offset
from pgherd.model.metrics import METRICS, PERIODS, Metric, value
from pgherd.model.service import Secrets
from pgherd.settings import Settings
from pgherd.store.db import AsyncDb
from pgherd.store.vault import Vault
from pgherd.telemetry import LogUnit

#: Seconds that a host has for its answer.
PATIENCE = 5.0
USUAL_LIMIT = 100
PROMETHEUS_USER = "prometheus"


class Telemetry:
    """The handlers of one API process."""

    def __init__(self, settings: Settings, db: AsyncDb, vault: Vault, ends: Ends) -> None:
        self._settings, self._db, self._vault, self._ends = settings, db, vault, ends

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {
            "get-dbaas-service-logs": self.logs,
            "get-dbaas-service-metrics": self.metrics,
            "reveal-prometheus-credentials": self.prometheus,
        }

    async def logs(self, request: Request) -> object:
        """get-dbaas-service-logs"""
        body = request.body
        limit, ascending = body.get("limit", USUAL_LIMIT), body.get("sort-order", "desc") == "asc"
        positions = read_offset(body["offset"]) if body.get("offset") else {}
        batch = uuid4()
        asked = await self._db.rows(
            "ask_logs",
            batch=batch,
            limit=limit,
            ascending=ascending,
            positions=Jsonb(msgspec.to_builtins(positions)),
            organization_id=request.key.organization_id,
            name=request.params["service-name"],
        )
        if not asked:
            raise NotFound("Service does not exist")

        async def look() -> list[DictRow]:
            return await self._db.rows("log_answers", batch=batch)

        try:
            rows = await self._ends.until(str(batch), look, _all_answered, PATIENCE)
        finally:
            await self._db.row("forget_question", batch=batch)
        if len(rows) < len(asked) or not _all_answered(rows):
            raise Conflict("The service's host does not answer now, so its logs cannot be read; try again later.")
        try:
            answers = {row["node"]: msgspec.convert(row["answer"], list[LogUnit]) for row in rows}
        except msgspec.ValidationError as error:
            raise Fault("A host gave a wrong answer.", detail=str(error)) from None
        return _logs(merge(answers, limit, ascending=ascending))

    async def metrics(self, request: Request) -> object:
        """get-dbaas-service-metrics"""
        period = PERIODS[request.body.get("period", "hour")]
        rows = await self._db.rows(
            "samples",
            step=period.step,
            seconds=period.seconds,
            organization_id=request.key.organization_id,
            name=request.params["service-name"],
        )
        if not rows:
            raise NotFound("Service does not exist")
        return {"metrics": {metric.name: _metric(metric, rows) for metric in METRICS}}

    async def prometheus(self, request: Request) -> object:
        """reveal-prometheus-credentials"""
        name = request.params["name"]
        row = await self._db.row("monitoring", organization_id=request.key.organization_id, name=name)
        if row is None:
            raise NotFound("Service does not exist")
        known = msgspec.json.decode(self._vault.open(bytes(row["secrets"])), type=Secrets)
        if not row["exporter"] or not known.monitor_password:
            raise Conflict("The service tells Prometheus nothing: its host has no exporter, or the service is too old.")
        return {
            "host": self._settings.host_of(name, request.key.organization),
            "port": row["first_port"] + 3,
            "scheme": "https",
            "path": "/metrics",
            "username": PROMETHEUS_USER,
            "password": known.monitor_password,
        }


def _all_answered(rows: list[DictRow]) -> bool:
    return all(row["answer"] is not None for row in rows)


def _logs(page: Page) -> dict[str, Any]:
    """`offset` goes on in the order that was asked for, `first-log-offset` from the other end of the page."""
    return {
        "offset": write_offset(page.far),
        "first-log-offset": write_offset(page.near),
        "logs": [
            {"unit": unit, "time": entry.time, "message": entry.message, "node": node}
            for node, unit, entry in page.entries
        ],
    }


def _metric(metric: Metric, rows: list[DictRow]) -> dict[str, Any]:
    """A table of times with one column a node, without the times at which nothing is known."""
    nodes = list(dict.fromkeys(row["node"] for row in rows))
    table: dict[str, list[Any]] = {}
    for row in rows:
        found = None if row["at"] is None else value(metric, row["measured"])
        if found is not None:
            at = timestamp(row["at"])
            table.setdefault(at, [at, *(None for _ in nodes)])[1 + nodes.index(row["node"])] = found
    columns = [{"label": "time", "type": "date"}, *({"label": node, "type": "number"} for node in nodes)]
    return {"data": {"cols": columns, "rows": [table[at] for at in sorted(table)]}, "hints": {"title": metric.title}}
