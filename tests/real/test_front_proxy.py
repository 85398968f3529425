"""The front on real sockets: behind another proxy, and with an instance that is not there."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from base64 import b64encode
from pathlib import Path

from pgherd.front import authority
from pgherd.front.proxy import USER, Front, Target
from pgherd.model import certificates

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def front(environ: dict[str, str], said: list[str], url: str = "http://127.0.0.1:1/v2") -> Front:
    return Front(Target(url, "ch-gva-2"), authority.new_authority("test"), "token", environ, said.append)


async def ask(made: Front, where: str) -> tuple[bytes, Streams]:
    """The head of the answer to a CONNECT, and the connection."""
    server = await made.serve("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    token = b64encode(f"{USER}:token".encode()).decode()
    writer.write(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\nProxy-Authorization: Basic {token}\r\n\r\n".encode())
    async with asyncio.timeout(10):
        return await reader.readuntil(b"\r\n\r\n"), (reader, writer)


async def another_proxy(heads: list[bytes], answer: bytes) -> str:
    """A proxy that answers every CONNECT with `answer` and then speaks first; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer + b"\r\n\r\nhello")
        writer.write_eof()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return f"http://me:s%40cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_tunnels_go_through_the_proxy_of_the_environment() -> None:
    async def run() -> None:
        heads: list[bytes] = []
        proxy = await another_proxy(heads, b"HTTP/1.1 200 yes")
        head, (reader, writer) = await ask(front({"HTTPS_PROXY": proxy}, []), "registry.test:443")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert await reader.read(100) == b"hello"
        writer.close()
        assert heads[0].startswith(b"CONNECT registry.test:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic " + b64encode(b"me:s@cret") in heads[0]

    asyncio.run(run())


def test_what_the_other_proxy_refuses_is_said() -> None:
    async def run() -> None:
        proxy = await another_proxy([], b"HTTP/1.1 403 not for you")
        head, _ = await ask(front({"https_proxy": proxy}, []), "registry.test:443")
        assert head.startswith(b"HTTP/1.1 502 Cannot reach registry.test: the proxy 127.0.0.1 says: ")
        assert b"403 not for you" in head

    asyncio.run(run())


def test_an_instance_that_is_away_is_said_to_client_and_watcher() -> None:
    """Go shows the status line's text, sends again for some seconds, and finds the instance when it is back."""

    async def run() -> None:
        said: list[str] = []
        head, _ = await ask(front({}, said), "api-ch-gva-2.exoscale.com:443")
        assert head.startswith(b"HTTP/1.1 502 The pgherd API at http://127.0.0.1:1/v2 cannot be reached: ")
        assert len(said) == 1 and "cannot be reached" in said[0]

    asyncio.run(run())


def test_a_head_without_end_is_cut_off() -> None:
    async def run() -> None:
        server = await front({}, []).serve("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"CONNECT x:443 HTTP/1.1\r\n" + b"X: y\r\n" * 10_000)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""

    asyncio.run(run())


def test_an_instance_that_speaks_tls_itself(tmp_path: Path) -> None:
    """The front checks its certificate, with the CAs of the bundle."""

    async def run() -> None:
        ca, ca_key = certificates.new_authority("instance")
        (tmp_path / "server.pem").write_text("".join(certificates.issue(ca, ca_key, "api", ["127.0.0.1"])))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2"
        where = "api-ch-gva-2.exoscale.com:443"
        made = front({}, [], url)
        head, _ = await ask(made, where)
        assert b"certificate verify failed" in head
        (tmp_path / "bundle.pem").write_text(ca)
        made.target = Target(url, "ch-gva-2", str(tmp_path / "bundle.pem"))
        head, (reader, writer) = await ask(made, where)
        assert head.startswith(b"HTTP/1.1 200 ")
        await writer.start_tls(ssl.create_default_context(cadata=made.ca[0]), server_hostname=where.split(":")[0])
        writer.write(b"ping")
        async with asyncio.timeout(10):
            assert await reader.read() == b"ping"

    asyncio.run(run())
