"""HTTP/1.1 as the real clients speak it: uvicorn's httptools protocol with three corrections.

1. Java sends `Upgrade: h2c` with every plain request. httptools (0.9) takes the body of such a request for
   another protocol and drops it; here the framing headers alone are shown to a second parser, which goes on.
2. What is no HTTP at all is answered as JSON, like every other refusal.
3. A client that opens a connection and sends its head slowly, or nothing, is disconnected.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds from the first byte awaited to the end of a request's head.
HEAD_PATIENCE = 20.0
#: Most bytes of a request's head.
HEAD_LIMIT = 64 << 10

_FRAMING = (b"content-length", b"transfer-encoding")


class Protocol(HttpToolsProtocol):
    """To be passed to uvicorn as `http=`, together with `ws="none"`."""

    _deadline: asyncio.TimerHandle | None = None
    _head_size = 0
    _replaying = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the client HEAD_PATIENCE for its first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; it stops at a head that asks for an upgrade, and another one takes over."""
        self._unset_keepalive_if_required()
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        while data and self.parser is not None:
            self._head_size += len(data)
            if self._deadline is not None and self._head_size > HEAD_LIMIT + len(data):
                self.send_400_response("The request's head is too large.")
                return
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.send_400_response("This is not valid HTTP.")
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._replace_parser()
                continue
            return

    def _replace_parser(self) -> None:
        """Go on with a parser that has seen this request's framing, and no wish for another protocol."""
        framing = [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] in _FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._replaying = True
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
        finally:
            self._replaying = False

    def on_message_begin(self) -> None:
        """Start the clock for this head."""
        if self._replaying:
            return
        self._head_size = 0
        self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        if not self._replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        if not self._replaying:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock: the body has one of its own."""
        if not self._replaying:
            self._end_head()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request, unless the parser believes that its body is another protocol."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer `{"message"}` and close."""
        content = b'{"message":"%s"}' % msg.encode("ascii")
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(content), content)
        )
        self.transport.close()

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_PATIENCE, self._too_slow)

    def _end_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()


def server_options() -> dict[str, Any]:
    """The options of uvicorn.Config that the API needs: one process, this protocol, no access log."""
    return {
        "http": Protocol,
        "ws": "none",
        "loop": "uvloop",
        "access_log": False,
        "server_header": False,
        "date_header": True,
        "proxy_headers": False,
        "timeout_keep_alive": 75,
        "log_config": None,
    }
