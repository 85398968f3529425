"""HTTP load from one process: raw keep-alive connections, so that the generator costs little. Times in seconds."""

from __future__ import annotations

import asyncio
import time

import uvloop


class _Connection:
    """One keep-alive connection that sends the same request again and again."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._where, self._request = (host, port), request

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._where)

    async def ask(self) -> None:
        """Send and read one whole answer; fails unless it is a 200."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.split(b"\r\n")[0].decode())
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def _opened(host: str, port: int, request: bytes, count: int) -> list[_Connection]:
    connections = [_Connection(host, port, request) for _ in range(count)]
    for connection in connections:
        await connection.open()
        await connection.ask()
    return connections


async def _closed(host: str, port: int, request: bytes, count: int, seconds: float) -> list[float]:
    connections = await _opened(host, port, request, count)
    end, times = time.perf_counter() + seconds, []

    async def repeat(connection: _Connection) -> None:
        while (start := time.perf_counter()) < end:
            await connection.ask()
            times.append(time.perf_counter() - start)

    await asyncio.gather(*map(repeat, connections))
    for connection in connections:
        connection.close()
    return times


async def _open(host: str, port: int, request: bytes, count: int, seconds: float, rate: float) -> list[float]:
    """Latency counts from the moment a request was due, so that a slow answer is charged to those behind it."""
    connections = await _opened(host, port, request, count)
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    times: list[float] = []

    async def one(due: float) -> None:
        connection = await free.get()
        await connection.ask()
        times.append(time.perf_counter() - due)
        free.put_nowait(connection)

    start, tasks = time.perf_counter() + 0.1, []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    for connection in connections:
        connection.close()
    return times


def closed_loop(host: str, port: int, request: bytes, connections: int, seconds: float) -> list[float]:
    """Each connection asks again as soon as it has its answer."""
    return uvloop.run(_closed(host, port, request, connections, seconds))


def open_loop(host: str, port: int, request: bytes, connections: int, seconds: float, rate: float) -> list[float]:
    """`rate` requests per second whatever the answers do."""
    return uvloop.run(_open(host, port, request, connections, seconds, rate))
