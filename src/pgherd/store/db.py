"""Transactions on the metadata.

Rows are dictionaries keyed by column. Synchronous for everything that writes; `AsyncDb` is the one
asynchronous place, for the API's reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgherd.errors import Incorrect, Unavailable
from pgherd.home import Home
from pgherd.settings import Settings
from pgherd.store.queries import queries

#: Seconds that a request waits for a connection.
PATIENCE = 4.0
#: Seconds after which a pool gives an attempt to connect up; the next request begins anew, without the growing pauses.
RECONNECT = 3.0
#: A process that was stopped within a transaction must not hold its locks for ever, nor make others wait for ever.
_LIMITS = "set lock_timeout = '10s'; set idle_in_transaction_session_timeout = '15s'"


def database_url(settings: Settings) -> str:
    """Where the metadata is: the setting, or the private server by its socket."""
    if settings.database_url:
        return settings.database_url
    return f"postgresql://pgherd@/pgherd?host={quote(str(Home(settings.root).metadata_socket), safe='')}"


_CHARACTERS = (psycopg.errors.CharacterNotInRepertoire, psycopg.errors.UntranslatableCharacter)


@contextlib.contextmanager
def _storable() -> Iterator[None]:
    """Raise Incorrect for a text with a NUL or half a surrogate pair, be it psycopg, a column or jsonb that refuses it.

    Whoever takes a text from outside checks it; this is the second wall, behind which it would be a fault of ours.
    """
    try:
        yield
    except (UnicodeEncodeError, psycopg.DataError) as error:
        if isinstance(error, psycopg.DataError) and error.sqlstate is not None and not isinstance(error, _CHARACTERS):
            raise
        message = "The request holds a character that cannot be stored, such as NUL."
        raise Incorrect(message, detail=type(error).__name__) from error


class Transaction:
    """One open transaction."""

    def __init__(self, connection: psycopg.Connection[DictRow]) -> None:
        self.connection = connection

    def rows(self, name: str, /, **values: Any) -> list[DictRow]:
        """All rows of the statement `name`. Raises Incorrect for a text that PostgreSQL cannot hold."""
        with _storable():
            cursor = self.connection.execute(queries[name], values)
        return cursor.fetchall() if cursor.description else []

    def row(self, name: str, /, **values: Any) -> DictRow | None:
        """The first row, or None."""
        found = self.rows(name, **values)
        return found[0] if found else None

    def run(self, name: str, /, **values: Any) -> int:
        """Carry the statement out; the number of rows it touched. Raises Incorrect as `rows` does."""
        with _storable():
            return self.connection.execute(queries[name], values).rowcount


class Db:
    """A pool of connections for synchronous code. With `wait=False` it opens only when `open` is called."""

    def __init__(self, url: str, size: int, *, wait: bool = True) -> None:
        self._pool = ConnectionPool(
            url,
            min_size=1,
            max_size=size,
            open=wait,
            timeout=PATIENCE,
            reconnect_timeout=RECONNECT,
            configure=_limit,
            check=ConnectionPool.check_connection,
            connection_class=psycopg.Connection[DictRow],
            kwargs={"row_factory": dict_row, "application_name": "pgherd"},
        )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that commits at the end of the block. Raises Unavailable when the metadata does not answer."""
        try:
            with self._pool.connection() as connection, connection.transaction():
                yield Transaction(connection)
        except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout) as error:
            raise _unavailable(error) from error

    def open(self) -> None:
        """Start the pool."""
        self._pool.open()

    def close(self) -> None:
        """Give the connections back."""
        self._pool.close()


def _limit(connection: psycopg.Connection[DictRow]) -> None:
    connection.execute(_LIMITS)
    connection.commit()


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable("The metadata database does not answer; try again.", detail=str(error))


class AsyncDb:
    """A pool of connections for the API's reads; one statement each, outside of transactions."""

    def __init__(self, url: str, size: int) -> None:
        self._pool = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=size,
            open=False,
            timeout=PATIENCE,
            reconnect_timeout=RECONNECT,
            connection_class=psycopg.AsyncConnection[DictRow],
            kwargs={"row_factory": dict_row, "application_name": "pgherd-api", "autocommit": True},
        )

        # Waiting here instead of in the pool nearly doubles the throughput at 16 clients (psycopg_pool 3.3).
        self._free = asyncio.Semaphore(size)

    async def open(self) -> None:
        """Start the pool inside the running loop."""
        await self._pool.open()

    async def close(self) -> None:
        """Give the connections back."""
        await self._pool.close()

    async def rows(self, name: str, /, **values: Any) -> list[DictRow]:
        """All rows of the statement `name`. A connection that died (a restarted server) is replaced once.

        Raises Unavailable when the metadata does not answer, within seconds however many others ask, and Incorrect for
        a text that PostgreSQL cannot hold.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                await self._free.acquire()
        except TimeoutError as error:
            raise _unavailable(error) from error
        try:
            try:
                return await self._fetch(name, values)
            except PoolTimeout:
                raise
            except psycopg.OperationalError:
                await self._pool.check()
                return await self._fetch(name, values)
        except psycopg.OperationalError as error:
            raise _unavailable(error) from error
        finally:
            self._free.release()

    async def _fetch(self, name: str, values: dict[str, Any]) -> list[DictRow]:
        async with self._pool.connection() as connection:
            with _storable():
                cursor = await connection.execute(queries[name], values, prepare=True)
            return await cursor.fetchall()

    async def row(self, name: str, /, **values: Any) -> DictRow | None:
        """The first row, or None."""
        found = await self.rows(name, **values)
        return found[0] if found else None
