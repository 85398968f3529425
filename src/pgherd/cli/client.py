"""Calls to the API: the contract's through the official SDK, our own with the same signature.

Importing the SDK takes a quarter of a second, so it happens when an `Api` is made and not before.
"""

from __future__ import annotations

import secrets
import time
from typing import Any
from urllib.parse import quote

from pgherd.cli import credentials as sources
from pgherd.cli.credentials import Credentials
from pgherd.cli.outcome import CliError, Exit, code_of, hint_for

TIMEOUT = (5.0, 90.0)  # seconds to connect, and without a byte of an answer
#: Seconds before a request is sent again. `pgherd restart` takes the API away for 1.1 s, on busy processors for 1.4 s.
RETRIES = (0.2, 0.5, 1.0, 2.0)


class Api:
    """One API with one key. Unless `patient`, a request that meets no API is not sent again."""

    def __init__(self, credentials: Credentials, *, patient: bool = True) -> None:
        from exoscale.api.v2 import Client  # type: ignore[import-untyped]

        self.credentials = credentials
        self._client = Client(credentials.key, credentials.secret, url=credentials.url)
        self._session = self._client.http_client
        self._session.auth = _signing_anew(credentials)
        self._retries = RETRIES if patient else ()

    def call(self, operation_id: str, *path: str, body: Any = None) -> Any:
        """Call an operation of the contract with its path parameters in order. Raises CliError."""
        route = route_of(operation_id)
        names = path_parameters(route)
        if len(path) != len(names):
            wanted = " ".join(name.upper() for name in names) or "none"
            raise CliError(Exit.USAGE, f"{operation_id} takes as path parameters: {wanted}; given: {len(path)}.")
        _refuse_empty(path)
        where = route["path"].format(**{name: quote(value, safe="") for name, value in zip(names, path, strict=True)})
        return self._send(route["verb"], self.credentials.url + where, body, *path[:1])

    def own(self, method: str, *path: str, body: Any = None, query: str = "") -> Any:
        """Call one of pgherd's own resources under /pgherd/v1. Raises CliError."""
        _refuse_empty(path)
        url = "/".join([self.credentials.own_url, *(quote(part, safe="") for part in path)])
        url += f"?{query}" if query else ""
        return self._send(method, url, body, repeatable=method == "GET")

    def _send(self, method: str, url: str, body: Any, subject: str = "NAME", *, repeatable: bool = True) -> Any:
        import requests

        request = self._session.prepare_request(requests.Request(method.upper(), url, json=body))
        try:
            answer = self._answer(request, repeatable)
        except requests.Timeout:
            raise _unreachable(self.credentials, "it does not answer in time") from None
        except requests.exceptions.SSLError as error:
            hint = "If the API has a CA of its own, name its PEM file in REQUESTS_CA_BUNDLE."
            raise CliError(
                Exit.UNREACHABLE, f"No TLS with {self.credentials.endpoint}: {plain_cause(error)}.", hint
            ) from None
        except requests.RequestException as error:
            raise _unreachable(self.credentials, plain_cause(error)) from None
        if answer.status_code >= 400:
            message = message_of(answer.status_code, answer.text)
            origin = self.credentials.origin
            hint = hint_for(answer.status_code, message, subject, from_file=origin if origin.startswith("/") else "")
            raise CliError(code_of(answer.status_code), message, hint)
        try:
            return answer.json()
        except ValueError:
            raise CliError(
                Exit.UNREACHABLE, f"{self.credentials.endpoint} answers, but not as this API does: no JSON."
            ) from None

    def _answer(self, request: Any, repeatable: bool) -> Any:
        """Send a signed request, and the same again while the API is away.

        The API knows a request of the contract by its signature, so that one which it has accepted already
        gets the same operation. Others are sent again only when no connection was made.
        """
        import requests

        local = self.credentials.host in ("localhost", "::1") or self.credentials.host.startswith("127.")
        proxies = {"no_proxy": self.credentials.host} if local else {}
        chosen = self._session.merge_environment_settings(request.url, proxies, False, None, None)
        for pause in (*self._retries, None):
            try:
                answer = self._session.send(request, timeout=TIMEOUT, allow_redirects=False, **chosen)
                if answer.status_code != 503 or not repeatable or pause is None:
                    return answer
            except (requests.Timeout, requests.exceptions.SSLError):
                raise
            except requests.ConnectionError as error:
                if pause is None or not (repeatable or isinstance(cause_of(error), ConnectionRefusedError)):
                    raise
            time.sleep(pause)
        raise AssertionError("the last round returns or raises")


def _signing_anew(credentials: Credentials) -> Any:
    """The SDK's signature with an end that hardly comes twice.

    Two like calls of one second have the same signature in the SDK, and the API takes them for one (decision 0005).
    """
    from exoscale_auth import ExoscaleV2Auth  # type: ignore[import-untyped]

    class SignedAnew(ExoscaleV2Auth):  # type: ignore[misc]
        def __call__(self, request: Any) -> Any:
            self._sign_request(request, int(time.time()) + 600 + secrets.randbelow(2000))
            return request

    return SignedAnew(credentials.key, credentials.secret)


def _refuse_empty(path: tuple[str, ...]) -> None:
    """An empty name, as from an unset variable of a script, would make another path."""
    if "" in path:
        raise CliError(Exit.USAGE, "The name is empty.", "Is a variable unset?")


def connect(*, patient: bool = True) -> Api:
    """The API that the environment or this machine's instance names. Raises CliError."""
    return Api(sources.find(), patient=patient)


def operations() -> dict[str, dict[str, Any]]:
    """All operations of the contract by id, with `verb`, `path` and `operation`; no credentials are needed."""
    from exoscale.api.v2 import Client

    return dict(Client._by_operation)


def document() -> dict[str, Any]:
    """The OpenAPI document of the contract."""
    from exoscale.api.v2 import Client

    return dict(Client._api_spec)


def route_of(operation_id: str) -> dict[str, Any]:
    """Verb, path and description of an operation. Raises CliError with the nearest names."""
    known = operations()
    if operation_id in known:
        return known[operation_id]
    from difflib import get_close_matches

    near = ", ".join(get_close_matches(operation_id, known, n=3))
    hint = f"Did you mean {near}?" if near else "See them: pgherd api --list"
    raise CliError(Exit.USAGE, f"There is no operation {operation_id!r} in the contract.", hint)


def path_parameters(route: dict[str, Any]) -> list[str]:
    """Names of the path parameters of an operation in the order in which they stand in the path."""
    import re

    return re.findall(r"\{([^}]+)\}", route["path"])


def message_of(status: int, text: str) -> str:
    """What the server says, out of the body of a 4xx or 5xx."""
    import json

    try:
        message = json.loads(text)["message"]
    except (ValueError, TypeError, KeyError):
        message = None
    if isinstance(message, str) and message:
        return message
    return f"The API answered with status {status}."


def cause_of(error: BaseException) -> BaseException:
    """The innermost cause of a connection error, below the layers of the HTTP library."""
    inner = error.__cause__ or error.__context__
    return error if inner is None else cause_of(inner)


def plain_cause(error: BaseException) -> str:
    """The innermost cause in words."""
    cause = cause_of(error)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__


def _unreachable(credentials: Credentials, why: str) -> CliError:
    local = credentials.host in ("localhost", "127.0.0.1", "::1")
    hint = "Start it with `make up` (or `pgherd up`); `pgherd doctor` looks for what is wrong." if local else ""
    return CliError(Exit.UNREACHABLE, f"Cannot reach the API at {credentials.endpoint}: {why}.", hint)
