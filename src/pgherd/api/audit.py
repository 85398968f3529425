"""Who did what: every call that changes something, and every reveal, leaves an event; never a secret."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC
from typing import Any
from urllib.parse import parse_qs

from pgherd.api.request import Handler, Request
from pgherd.api.roles import check_administrator
from pgherd.errors import Incorrect, PgherdError
from pgherd.store.db import AsyncDb
from pgherd.store.keys import Key

log = logging.getLogger("pgherd.api")

#: Results other than a refusal's message. An event stays `begun` when the API died before it answered.
BEGUN, ACCEPTED = "begun", "accepted"
#: Events that one answer holds at most, and when the request does not say.
MOST, USUAL = 1000, 100

_REVEALS = frozenset({"reveal-dbaas-postgres-user-password", "reveal-prometheus-credentials"})
#: They are sent as POST and change nothing.
_READS = frozenset({"get-dbaas-service-logs", "get-dbaas-service-metrics"})
#: Fields of bodies that name what a request is about.
_NAMES = ("username", "database-name", "name", "organization", "role")
_LONGEST = 300


def is_recorded(method: str, operation_id: str) -> bool:
    """Whether a call of this operation leaves an event."""
    return (method not in ("GET", "HEAD") and operation_id not in _READS) or operation_id in _REVEALS


def subject(params: Mapping[str, str], body: Mapping[str, Any]) -> str:
    """What a call is about: the names in its path, then those in its body."""
    named = [str(body[field]) for field in _NAMES if isinstance(body.get(field), str)]
    return _line("/".join([*params.values(), *named]))


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_LONGEST])


class Audit:
    """Writes events, and shows them: the operator all, an admin those of its own organization's keys."""

    def __init__(self, db: AsyncDb) -> None:
        self._db = db

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {"list-events": self.list}

    async def begin(self, key: Key, remote: str, command: str, about: str) -> int:
        """Before anything is done: what can leave no event does not happen. Raises Unavailable."""
        row = await self._db.row(
            "insert_event",
            organization_id=key.organization_id,
            key=key.id,
            remote=remote,
            command=command,
            subject=about,
            result=BEGUN,
        )
        return int(row["id"]) if row else 0

    async def end(self, event: int, error: Exception | None, answer: object = None) -> None:
        """What came of it, and which operation it opened, if that is the answer.

        If the metadata goes away meanwhile, the event stays as it began.
        """
        result = ACCEPTED if error is None else error.message if isinstance(error, PgherdError) else "Internal error."
        try:
            await self._db.row("end_event", id=event, result=_line(result), operation=_operation(answer))
        except PgherdError as failure:
            log.error("event %d could not be ended as %r: %s", event, result, failure)

    async def list(self, request: Request) -> object:
        """list-events: the newest first"""
        check_administrator(request.key.role)
        query = parse_qs(request.query.decode("utf-8", "replace"))
        rows = await self._db.rows(
            "events",
            organization_id=None if request.key.role == "operator" else request.key.organization_id,
            before=_number(query, "before", None, 2**62),
            limit=_number(query, "limit", USUAL, MOST),
        )
        return {"events": [_shown(row) for row in rows]}


def _operation(answer: object) -> str | None:
    """The id, when that is what an answer is."""
    if isinstance(answer, dict) and {"id", "state", "reference"} <= answer.keys():
        return str(answer["id"])
    return None


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """`operation` and what has become of it only where there is one."""
    known = {name: value for name, value in row.items() if value is not None}
    return known | {"at": row["at"].astimezone(UTC)}


def _number(query: dict[str, list[str]], name: str, otherwise: int | None, most: int) -> int | None:
    text = query.get(name, [""])[-1]
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and 1 <= int(text) <= most):
        raise Incorrect(f"{name}: must be an integer from 1 to {most}")
    return int(text)
