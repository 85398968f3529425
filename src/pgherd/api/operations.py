"""get-operation, and the bounded hold that lets a quick operation answer `success` at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import anyio.to_thread
import psycopg
from psycopg.rows import DictRow

from pgherd.api import render
from pgherd.api.request import Request
from pgherd.errors import NotFound
from pgherd.reconcilers.operations import end_one_overdue
from pgherd.store.db import AsyncDb
from pgherd.store.keys import KeyCache
from pgherd.workflows.app import App, Caller

log = logging.getLogger(__name__)

#: Seconds that an answer waits for its operation's end.
HOLD = 2.0


class Ends:
    """Listens for ended operations, hosts' answers and changed keys; one connection for the whole process."""

    def __init__(self, url: str, keys: KeyCache) -> None:
        self._url = url
        self._keys = keys
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def listen(self) -> None:
        """Run for ever. After a lost connection everybody looks for themselves."""
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, application_name="pgherd-api-ends"
                )
                async with connection:
                    await connection.execute("listen pgherd_operation")
                    await connection.execute("listen pgherd_keys")
                    await connection.execute("listen pgherd_answer")
                    self._keys.forget()
                    async for notice in connection.notifies():
                        if notice.channel == "pgherd_keys":
                            self._keys.forget()
                        for event in self._waiting.get(notice.payload, ()):
                            event.set()
            except psycopg.Error as error:
                log.warning("listening to the metadata failed, trying again: %s", error)
            self._keys.forget()
            for events in self._waiting.values():
                for event in events:
                    event.set()
            await asyncio.sleep(0.5)

    async def wait(self, operation: UUID, look: Callable[[], Any], seconds: float = HOLD) -> DictRow:
        """What `look` finds: at once when the operation has ended, else at its end or after so many seconds."""
        row: DictRow = await self.until(str(operation), look, _has_ended, seconds)
        return row

    async def until(self, name: str, look: Callable[[], Any], reached: Callable[[Any], bool], seconds: float) -> Any:
        """What `look` finds: once it is `reached`, looking again with each notification of `name`, or in the end."""
        event, deadline = asyncio.Event(), time.monotonic() + seconds
        self._waiting.setdefault(name, set()).add(event)
        try:
            found = await look()
            while not reached(found):
                try:
                    await asyncio.wait_for(event.wait(), deadline - time.monotonic())
                except TimeoutError:
                    break
                event.clear()
                found = await look()
            return found
        finally:
            self._waiting[name].discard(event)
            if not self._waiting[name]:
                del self._waiting[name]


def _has_ended(row: DictRow) -> bool:
    return row["state"] != "pending" or bool(row["overdue"])


class Operations:
    """Answers with operations: those that a request opens, and those that are asked for."""

    def __init__(self, app: App, db: AsyncDb, ends: Ends) -> None:
        self._app = app
        self._db = db
        self._ends = ends

    async def _look(self, request: Request, operation: UUID) -> DictRow:
        row = await self._db.row("operation", id=operation, organization_id=request.key.organization_id)
        if row is None:
            raise NotFound("Operation does not exist")
        return row

    async def get(self, request: Request) -> object:
        """get-operation: a pending one is waited for; one past its deadline ends now, worker or not."""
        operation = UUID(request.params["id"])
        row = await self._ends.wait(operation, lambda: self._look(request, operation))
        if row["overdue"] and row["state"] == "pending":
            await anyio.to_thread.run_sync(self._end_overdue, row)
            row = await self._look(request, operation)
        return render.operation(row)

    def _end_overdue(self, row: DictRow) -> None:
        with self._app.db.transaction() as tx:
            end_one_overdue(tx, row)

    async def open(self, request: Request, accept: Callable[[App, Caller, UUID], UUID]) -> object:
        """Accept in a thread, then hold the answer. A failure is answered `pending`: clients look at it by polling."""
        row = await self.settled(request, accept, HOLD)
        if row["state"] in ("failure", "timeout"):
            row = {**row, "state": "pending", "reason": None, "message": ""}
        return render.operation(row)

    async def settled(self, request: Request, accept: Callable[[App, Caller, UUID], UUID], seconds: float) -> DictRow:
        """Accept in a thread; the operation's row once it has ended, or as it is after so many seconds."""
        caller = Caller(request.key.organization_id, request.key.organization, request.key.id, request.signature)
        operation = await anyio.to_thread.run_sync(accept, self._app, caller, uuid4())
        return await self._ends.wait(operation, lambda: self._look(request, operation), seconds)
