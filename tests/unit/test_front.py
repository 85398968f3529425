"""The front for Terraform without a network: what its CA can do, whose proxy is used, what a shell gets."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from pgherd.errors import Conflict, Incorrect
from pgherd.front import authority
from pgherd.front.environment import variables
from pgherd.front.place import Place
from pgherd.front.proxy import USER, outer_proxy

CA = authority.new_authority("someone@somewhere")


def shake_hands(host: str, tmp_path: Path) -> None:
    """A whole TLS handshake as `host`, with a certificate of the CA, in memory. Raises SSLError."""
    leaf = tmp_path / "leaf.pem"
    leaf.write_text("".join(authority.issue(*CA, host)))
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=CA[0])
    server_side.load_cert_chain(leaf)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass


def test_the_ca_speaks_for_exoscale_com_alone(tmp_path: Path) -> None:
    shake_hands("api-ch-gva-2.exoscale.com", tmp_path)
    for host in ("example.com", "exoscale.com.example.org", "notexoscale.com"):
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
            shake_hands(host, tmp_path)


def test_a_ca_is_due_before_it_is_over() -> None:
    assert not authority.due(CA[0])


def test_the_place_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.pem"
    mine.write_text(CA[0])
    place = Place({"XDG_CONFIG_HOME": str(tmp_path), "REQUESTS_CA_BUNDLE": str(mine)})
    first = place.ensure()
    assert place.ensure() == first
    assert first[0] in place.bundle.read_text() and CA[0] in place.bundle.read_text(), "ours and what was trusted"
    assert {path.stat().st_mode & 0o777 for path in place.path.iterdir()} == {0o600}
    (place.path / "ca-key.pem").unlink()
    assert place.ensure() != first
    renewed = place.ensure()
    monkeypatch.setattr(authority, "due", lambda certificate: True)
    assert place.ensure() != renewed
    with pytest.raises(Incorrect, match="SSL_CERT_FILE"):
        Place({"XDG_CONFIG_HOME": str(tmp_path), "SSL_CERT_FILE": str(tmp_path / "none.pem")}).ensure()


def test_one_front_at_a_time_and_none_after_it(tmp_path: Path) -> None:
    place = Place({"HOME": str(tmp_path)})
    with pytest.raises(Incorrect, match="pgherd terraform-front"):
        place.running()
    place.ensure()
    token = place.token()
    with place.announced("127.0.0.1:8451", "ch-gva-2", "https://db.example.com/v2", token):
        assert place.running() == {
            "listen": "127.0.0.1:8451", "zone": "ch-gva-2", "url": "https://db.example.com/v2", "token": token,
        }  # fmt: skip
        with pytest.raises(Conflict, match="runs already"), place.announced("", "", "", ""):
            pass
    with pytest.raises(Incorrect):
        place.running()
    assert place.token() == token


@pytest.mark.parametrize(
    ("host", "environ", "proxy"),
    [
        ("registry.example.com", {}, None),
        ("registry.example.com", {"HTTPS_PROXY": "http://proxy.example.com:3128"}, "proxy.example.com"),
        ("registry.example.com", {"https_proxy": "http://a:b@10.0.0.1:3128", "no_proxy": "else.example"}, "10.0.0.1"),
        ("registry.example.com", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".example.com"}, None),
        ("127.0.0.1", {"HTTPS_PROXY": "http://proxy:3128"}, None),
        ("localhost", {"HTTPS_PROXY": "http://proxy:3128"}, None),
        ("registry.example.com", {"HTTPS_PROXY": f"http://{USER}:token@127.0.0.1:8451"}, None),
    ],
)
def test_the_proxy_behind_the_front(host: str, environ: dict[str, str], proxy: str | None) -> None:
    found = outer_proxy(host, environ)
    assert (found.hostname if found else None) == proxy


def test_what_a_shell_gets(tmp_path: Path) -> None:
    running = {"listen": "127.0.0.1:8451", "zone": "ch-gva-2", "url": "https://db.example.com/v2", "token": "T"}
    got = variables(tmp_path / "bundle.pem", running, ("K", "S"), {"no_proxy": "a.example,127.0.0.1"})
    assert got["EXOSCALE_API_ENDPOINT"] == "https://api-ch-gva-2.exoscale.com/v2"
    assert (got["EXOSCALE_API_KEY"], got["EXOSCALE_API_SECRET"]) == ("K", "S")
    assert got["HTTPS_PROXY"] == got["https_proxy"] == f"http://{USER}:T@127.0.0.1:8451"
    assert got["NO_PROXY"] == got["no_proxy"] == "a.example,127.0.0.1,localhost,::1,db.example.com"
    assert got["SSL_CERT_FILE"] == got["REQUESTS_CA_BUNDLE"] == os.fspath(tmp_path / "bundle.pem")
