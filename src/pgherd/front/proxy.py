"""The front itself: an HTTP proxy on a loopback address that answers CONNECT and nothing else.

A tunnel to `api-<zone>.exoscale.com` ends here: its TLS is taken off and the bytes go to this instance as they
are, so that signatures, paths and bodies stay whole. Other names below exoscale.com are refused: no request
meant for this instance must reach the hosted service. Every other tunnel is passed on, since Terraform fetches
its providers and keeps its state elsewhere through the same variable. Whoever does not know the token gets
nothing: other users of this machine, a tenant's database among them, have no use for it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from pgherd.front import authority

#: The name that stands before the token in the proxy's URL.
USER = "terraform-front"
#: Seconds to send a request's head, and to open a connection onwards.
PATIENCE = 15.0
_HEAD_LIMIT = 16 << 10
_CHUNK = 64 << 10

_OURS = re.compile(r"api-([a-z0-9-]+)\.exoscale\.com")
_HOSTED = re.compile(r"(?:.*\.)?exoscale\.com")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Refused(Exception):
    """A tunnel that is not opened. The text stands in the status line, which is what clients show.

    What is not `ours` is between the client and where it wanted to go.
    """

    def __init__(self, status: int, reason: str, *, ours: bool = True) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.ours = ours


@dataclass(frozen=True)
class Target:
    """Where the instance is: its API's URL ending in /v2, and the CAs that its certificate is checked with."""

    url: str
    zone: str
    bundle: str = ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def tls(self) -> ssl.SSLContext | None:
        """How to speak TLS with it, None if it speaks plain HTTP."""
        return ssl.create_default_context(cafile=self.bundle or None) if self.url.startswith("https:") else None


@dataclass
class Front:
    """One proxy. `say` gets a line for whoever watches."""

    target: Target
    ca: tuple[str, str] = field(repr=False)
    token: str = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    say: Callable[[str], None]
    _contexts: dict[str, tuple[ssl.SSLContext, float]] = field(default_factory=dict, repr=False)

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listen; port 0 takes a free one."""
        return await asyncio.start_server(self._client, host, port, limit=_HEAD_LIMIT)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            host, port = await self._request(reader)
            onwards = await self._onwards(host, port)
        except Refused as refusal:
            self._refuse(writer, refusal)
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.close()
        else:
            await self._tunnel((reader, writer), onwards, host)

    async def _request(self, reader: asyncio.StreamReader) -> tuple[str, int]:
        async with asyncio.timeout(PATIENCE):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, _, rest = head[0].partition(" ")
        given = [line.partition(":")[2].strip() for line in head if line.lower().startswith("proxy-authorization:")]
        wanted = _basic(USER, self.token)
        if len(given) != 1 or not secrets.compare_digest(given[0].encode("latin-1"), wanted.encode()):
            raise Refused(407, "Use the variables of: pgherd env --terraform")
        target = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):(\d{1,5}) HTTP/1\.[01]", rest)
        if method != "CONNECT" or not target:
            raise Refused(405, "pgherd terraform-front answers CONNECT only", ours=False)
        return target[1].strip("[]").lower(), int(target[2])

    async def _onwards(self, host: str, port: int) -> Streams:
        """A connection to the instance, or to where the tunnel leads."""
        if not _HOSTED.fullmatch(host):
            try:
                return await self._open(host, port)
            except OSError as error:
                raise Refused(502, f"Cannot reach {host}: {error.strerror or error}", ours=False) from None
        ours = _OURS.fullmatch(host)
        if not ours or port != 443:
            raise Refused(403, f"pgherd terraform-front lets no call through to {host}, which is the hosted service")
        if ours[1] != self.target.zone:
            raise Refused(403, f"This instance is zone {self.target.zone}, not {ours[1]}: set zone to it")
        try:
            return await self._open(*self.target.address, tls=self.target.tls())
        except OSError as error:
            why = error.strerror or str(error)
            raise Refused(502, f"The pgherd API at {self.target.url} cannot be reached: {why}") from None

    async def _open(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> Streams:
        """Connect directly, or through the proxy that the front's own environment names. Raises OSError."""
        proxy = outer_proxy(host, self.environ)
        name = host if tls else None
        async with asyncio.timeout(PATIENCE):
            if proxy is None:
                return await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
            reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port or 80, limit=_HEAD_LIMIT)
            shown = f"[{host}]" if ":" in host else host
            ask = f"CONNECT {shown}:{port} HTTP/1.1\r\nHost: {shown}:{port}\r\n"
            if proxy.username:
                ask += f"Proxy-Authorization: {_basic(unquote(proxy.username), unquote(proxy.password or ''))}\r\n"
            writer.write(f"{ask}\r\n".encode())
            try:
                answer = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                answer = b"no answer"
            if not re.match(rb"HTTP/1\.[01] 2\d\d ", answer):
                writer.close()
                said = answer.split(b"\r\n")[0].decode("latin-1")[:100]
                raise OSError(f"the proxy {proxy.hostname} says: {said}")
            if tls:
                await writer.start_tls(tls, server_hostname=name)
            return reader, writer

    async def _tunnel(self, client: Streams, onwards: Streams, host: str) -> None:
        """Say yes, take the TLS off where it ends here, and carry bytes until both sides have ended."""
        writer = client[1]
        try:
            # Between these two no other task runs: the client's first bytes must find the TLS in place.
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if _OURS.fullmatch(host):
                await writer.start_tls(self._context(host), ssl_handshake_timeout=PATIENCE)
            await asyncio.gather(_carry(client[0], onwards[1]), _carry(onwards[0], writer))
        except ssl.SSLError as error:
            self.say(f"TLS with a client failed ({error.reason}): does it use the SSL_CERT_FILE of the front?")
        except OSError:
            pass  # the client went away before its TLS was in place
        finally:
            for end in (writer, onwards[1]):
                end.close()

    def _context(self, host: str) -> ssl.SSLContext:
        """TLS under this name, with a certificate that is never older than half its life."""
        context, until = self._contexts.get(host, (None, 0.0))
        if context is None or time.monotonic() > until:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
            _load(context, *authority.issue(*self.ca, host))
            self._contexts[host] = context, time.monotonic() + authority.LEAF_HOURS * 1800
        return context

    def _refuse(self, writer: asyncio.StreamWriter, refusal: Refused) -> None:
        if refusal.ours:
            self.say(refusal.reason)
        ask = f'Proxy-Authenticate: Basic realm="{USER}"\r\n' if refusal.status == 407 else ""
        reason = re.sub(r"[^ -~]", "?", refusal.reason)
        head = f"HTTP/1.1 {refusal.status} {reason}\r\n{ask}Content-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        writer.close()


def outer_proxy(host: str, environ: Mapping[str, str]) -> SplitResult | None:
    """The proxy that the environment wants for a host; never the front itself, and none for loopback."""
    named = {name.lower().removesuffix("_proxy"): value for name, value in environ.items() if value}
    if re.fullmatch(r"localhost|127\.[\d.]+|::1", host) or proxy_bypass_environment(host, {"no": named.get("no", "")}):
        return None
    proxy = urlsplit(named.get("https", ""))
    return None if not proxy.hostname or proxy.username == USER else proxy


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the reader's side ends; then the writer's side learns it, so that the other direction ends as well."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
            return
    except OSError:
        pass  # one side went away in the middle
    writer.close()


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """The ssl module reads files only: this one has no name, so that the key is on no disk."""
    descriptor = os.memfd_create("front", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(f"{certificate}{key}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
