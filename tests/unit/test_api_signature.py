"""EXO2-HMAC-SHA256 against the official Python signer, the other clients' habits, and tampering."""

from __future__ import annotations

import base64
import time
from urllib.parse import quote, urlparse

import pytest
import requests
from exoscale_auth import ExoscaleV2Auth
from hypothesis import given
from hypothesis import strategies as st

from pgherd.api.signature import AHEAD, GRACE, Credential, parse, signature, verify
from pgherd.errors import Forbidden
from tests.plugins.wire import ADMIN, READER

NOW = 1_800_000_000
SECRET = ADMIN.secret.decode()
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
names = st.text("abcdefghijklmnopqrstuvwxyz-_[]é ", min_size=1, max_size=6)


def prepared(method: str, url: str, body: bytes) -> requests.PreparedRequest:
    return requests.Request(method, url, data=body or None, auth=ExoscaleV2Auth(ADMIN.id, SECRET)).prepare()


@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    segments=st.lists(texts.filter(lambda text: text not in (".", "..")), min_size=1, max_size=4),
    query=st.lists(st.tuples(names, texts), max_size=4),
    body=st.binary(max_size=64),
)
def test_what_the_official_python_client_signs_is_accepted(
    method: str, segments: list[str], query: list[tuple[str, str]], body: bytes
) -> None:
    path = "/v2/" + "/".join(quote(segment, safe="") for segment in segments)
    pairs = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
    request = prepared(method, f"http://127.0.0.1:8450{path}" + (f"?{pairs}" if pairs else ""), body)
    header = request.headers["Authorization"]
    header = header.encode("utf-8") if isinstance(header, str) else header
    target = urlparse(request.url)
    credential = parse(header)
    assert credential.expires > time.time() + 500
    raw_path, raw_query = str(target.path).encode(), str(target.query).encode()
    assert verify(credential, ADMIN, method, raw_path, raw_query, body, time.time()) is ADMIN


def header(expires: int, *, args: str = "", signed: str = "A" * 43 + "=") -> bytes:
    return f"EXO2-HMAC-SHA256 credential=K{args},expires={expires},signature={signed}".encode()


@given(st.data())
def test_anything_changed_is_refused(data: st.DataObject) -> None:
    given_ = {"method": "POST", "raw_path": b"/v2/a", "query": b"x=1", "body": b"{}"}
    good = Credential("K", (b"x",), NOW, signature(ADMIN.secret, **given_, args=(b"x",), expires=NOW))
    assert verify(good, ADMIN, **given_, now=NOW) is ADMIN
    what = data.draw(st.sampled_from([*given_, "expires", "signature"]))
    credential, changed = good, dict(given_)
    if what == "expires":
        credential = Credential("K", (b"x",), NOW + 1, good.signature)
    elif what == "signature":
        at = data.draw(st.integers(0, 42))
        other = data.draw(st.sampled_from("ABCz019+/").filter(lambda char: char != good.signature[at]))
        credential = Credential("K", (b"x",), NOW, good.signature[:at] + other + good.signature[at + 1 :])
    else:
        changed[what] = {"method": "PUT", "raw_path": b"/v2/b", "query": b"x=2", "body": b"{ }"}[what]
    with pytest.raises(Forbidden, match=r"^Invalid request signature$"):
        verify(credential, ADMIN, **changed, now=NOW)


def test_a_signature_has_one_spelling() -> None:
    """Base64 has unused bits; another spelling must not pass for a new request."""
    good = signature(ADMIN.secret, "GET", b"/v2/zone", b"", b"", (), NOW)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = good[:42] + alphabet[alphabet.index(good[42]) ^ 1] + "="
    assert base64.b64decode(twin) == base64.b64decode(good)
    with pytest.raises(Forbidden):
        verify(Credential("K", (), NOW, twin), ADMIN, "GET", b"/v2/zone", b"", b"", NOW)


@pytest.mark.parametrize(
    ("expires", "accepted"),
    [
        (NOW, True),  # Java: expires = now
        (NOW + 600, True),
        (NOW - GRACE, True),
        (NOW - GRACE - 1, False),
        (NOW + AHEAD, True),
        (NOW + AHEAD + 1, False),
        (0, False),
    ],
)
def test_expires(expires: int, accepted: bool) -> None:
    signed = signature(ADMIN.secret, "GET", b"/v2/zone", b"", b"", (), expires)
    credential = Credential("K", (), expires, signed)
    if accepted:
        assert verify(credential, ADMIN, "GET", b"/v2/zone", b"", b"", NOW) is ADMIN
    else:
        with pytest.raises(Forbidden, match=r"^Invalid request signature .*clock"):
            verify(credential, ADMIN, "GET", b"/v2/zone", b"", b"", NOW)


def test_wrong_key_and_no_key() -> None:
    credential = Credential("K", (), NOW, signature(ADMIN.secret, "GET", b"/", b"", b"", (), NOW))
    for key in (READER, None):
        with pytest.raises(Forbidden):
            verify(credential, key, "GET", b"/", b"", b"", NOW)


@pytest.mark.parametrize(
    ("query", "listed", "values"),
    [
        (b"b=2&a=1", (b"a", b"b"), b"12"),
        (b"a=1&a=2&b=3", (b"a", b"b"), b"3"),  # Python lists a, signs only b
        (b"a=&a=1", (b"a",), b"1"),  # Python drops the blank one
        (b"a=", (b"a",), b""),  # Go lists it, with an empty value
        (b"a=1&c=9", (b"a",), b"1"),  # what is not listed does not matter
        (b"a=x+y%2B%C3%A9&%61=", (b"a",), b"x y+\xc3\xa9"),
        (b"", (b"a",), b""),
        (b"a=1", (), b""),  # Java signs none
    ],
)
def test_signed_query_args(query: bytes, listed: tuple[bytes, ...], values: bytes) -> None:
    expected = signature(b"s", "GET", b"/", b"", b"", (), NOW) if not values else None
    got = signature(b"s", "GET", b"/", query, b"", listed, NOW)
    joined = b"GET /\n\n" + values + b"\n\n" + str(NOW).encode()
    import hashlib
    import hmac

    assert got == base64.b64encode(hmac.digest(b"s", joined, hashlib.sha256)).decode()
    assert expected is None or got == expected


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        b"",
        b"Basic Zm9vOmJhcg==",
        b"EXO2-HMAC-SHA256",
        header(1).replace(b"EXO2", b"exo2"),
        header(1).replace(b",", b", "),
        header(1) + b" ",
        header(1) + b",x=1",
        header(1).replace(b"expires=1", b"expires=-1"),
        header(1).replace(b"expires=1", b"expires=1e3"),
        header(1).replace(b"expires=1", b"expires=" + b"9" * 13),
        header(1).replace(b"credential=K", b"credential="),
        header(1).replace(b"credential=K", b"credential=" + b"K" * 129),
        header(1, signed="A" * 42 + "="),
        header(1, signed="A" * 43),
        header(1, signed="!" * 43 + "="),
    ],
)
def test_malformed_headers_are_refused(wrong: bytes | None) -> None:
    with pytest.raises(Forbidden, match=r"^Invalid request signature$"):
        parse(wrong)


def test_header_with_query_args() -> None:
    credential = parse(header(7, args=",signed-query-args=a;b"))
    assert credential == Credential("K", (b"a", b"b"), 7, "A" * 43 + "=")


@given(st.binary(max_size=300))
def test_no_header_raises_anything_else(raw: bytes) -> None:
    with pytest.raises(Forbidden):
        parse(b"EXO2-HMAC-SHA256 " + raw)
