"""EXO2-HMAC-SHA256: the signature of every request, as the real clients make it.

`Authorization: EXO2-HMAC-SHA256 credential=<key>[,signed-query-args=<a;b>],expires=<unix>,signature=<base64>`

Signed are, joined by newlines: method and path as on the wire, the raw body, the values of the listed
query arguments, nothing (headers), and `expires`. Two differences between clients are absorbed:
Java sends `expires = now`, hence a grace; Python lists arguments with several values too but signs only
single ones, and drops blank values.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote_to_bytes
from uuid import UUID

from pgherd.errors import Forbidden
from pgherd.store.keys import Key

#: Seconds for which a request is still taken after its `expires`; the Java client sets that to now.
GRACE = 60
#: Most seconds that `expires` may lie ahead; clients take 600.
AHEAD = 3600
REFUSAL = "Invalid request signature"

_HEADER = re.compile(
    rb"EXO2-HMAC-SHA256 credential=([!-+\--~]{1,128})(?:,signed-query-args=(.{0,4096}))?"
    rb",expires=([0-9]{1,12}),signature=([A-Za-z0-9+/]{43}=)"
)


class Keys(Protocol):
    """Where keys are found; the answer comes from a cache, so that a request costs no query."""

    async def get(self, key_id: str) -> Key | None:
        """The key with this id, or None when there is none or it was revoked."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What the Authorization header says. `signature` is the base64 text as it was sent."""

    key: str
    args: tuple[bytes, ...]
    expires: int
    signature: str


#: The key of nobody: of a request that needs none, and in place of an unknown key, so that its refusal takes
#: as long as that of a wrong signature.
NOBODY = Key("", b"\0" * 43, UUID(int=0), "", "read-only")


def parse(header: bytes | None) -> Credential:
    """Read an Authorization header. Raises Forbidden when it is missing or of another form."""
    found = _HEADER.fullmatch(header) if header else None
    if not found:
        raise Forbidden(REFUSAL)
    args = tuple(found[2].split(b";")) if found[2] else ()
    return Credential(found[1].decode("ascii"), args, int(found[3]), found[4].decode("ascii"))


def signed_values(query: bytes, names: tuple[bytes, ...]) -> bytes:
    """The values of the query arguments `names` that occur exactly once, in the order of `names`."""
    if not names:
        return b""
    values: dict[bytes, list[bytes]] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if value:
            values.setdefault(_unquoted(name), []).append(_unquoted(value))
    return b"".join(values[name][0] for name in names if len(values.get(name, ())) == 1)


def _unquoted(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def signature(
    secret: bytes, method: str, raw_path: bytes, query: bytes, body: bytes, args: tuple[bytes, ...], expires: int
) -> str:
    """The base64 signature of a request. `raw_path` is the escaped path as on the wire, without the query."""
    text = b"%s %s\n%s\n%s\n\n%d" % (method.encode("ascii"), raw_path, body, signed_values(query, args), expires)
    return base64.b64encode(hmac.digest(secret, text, hashlib.sha256)).decode("ascii")


def verify(
    credential: Credential, key: Key | None, method: str, raw_path: bytes, query: bytes, body: bytes, now: float
) -> Key:
    """The key, when it signed this request and the request is not too old. Raises Forbidden otherwise.

    The texts are compared, not the decoded bytes: a signature has one spelling, so that a repeated
    request can be recognised by it.
    """
    secret = (key or NOBODY).secret
    expected = signature(secret, method, raw_path, query, body, credential.args, credential.expires)
    if not hmac.compare_digest(expected, credential.signature) or key is None:
        raise Forbidden(REFUSAL)
    if not now - GRACE <= credential.expires <= now + AHEAD:
        raise Forbidden(REFUSAL, hint="(it has expired or lies too far ahead: is this machine's clock right?)")
    return key
