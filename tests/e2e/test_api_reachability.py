"""Under which names services and API are reached, and who gets in, once that is not a loopback address."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.plugins.instance import ROOTED, Instance, running_instance, until

DOMAIN = "db.test.example"


def test_a_name_of_its_own() -> None:
    """An instance that is advertised under a name, with a name for every service: one instance for all of it."""
    with running_instance(advertised_host=DOMAIN, service_host=f"{{service}}.{{org}}.{DOMAIN}") as public:
        name = public.create("shop")
        every_service_has_its_name(public, name)
        only_the_filter_decides(public, name)
        connections_that_are_no_longer_allowed_are_cut(public, name)


def every_service_has_its_name(public: Instance, name: str) -> None:
    organization = public.call("GET", "/pgherd/v1/organization").json()["organizations"][0]["name"]
    shown = public.client().get_dbaas_service_pg(name=name)
    host = f"{name}.{organization}.{DOMAIN}"
    assert shown["uri-params"]["host"] == shown["components"][0]["host"] == host
    assert f"@{host}:" in shown["uri"]


def refused(public: Instance, name: str, **options: str) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        public.sql(name, "select 1", hostaddr="127.0.0.1", **options)
    return str(caught.value)


#: As root the packet filter refuses strangers before PostgreSQL could.
STRANGER = "Connection refused" if ROOTED else "pg_hba.conf"


def allow(public: Instance, name: str, *networks: str) -> None:
    operation = public.client().update_dbaas_service_pg(name=name, ip_filter=list(networks))
    assert public.finished(operation)["state"] == "success"


def only_the_filter_decides(public: Instance, name: str) -> None:
    assert STRANGER in refused(public, name), "by default nobody"
    allow(public, name, "192.0.2.0/24", "127.0.0.1")
    assert public.sql(name, "select 1", hostaddr="127.0.0.1") == [(1,)], "its certificate names the service"
    assert public.sql(name, "select 1", hostaddr="127.0.0.1", host=DOMAIN) == [(1,)]
    assert "does not match" in refused(public, name, host="other.example")
    allow(public, name)
    assert STRANGER in refused(public, name)


def connections_that_are_no_longer_allowed_are_cut(public: Instance, name: str) -> None:
    allow(public, name, "127.0.0.0/8")
    with psycopg.connect(public.dsn(name, hostaddr="127.0.0.1"), autocommit=True) as connection:
        allow(public, name, "127.0.0.0/8", "192.0.2.0/24")
        assert connection.execute("select 1").fetchone() == (1,), "a wider filter cuts nobody"
        allow(public, name, "192.0.2.0/24")

        def cut() -> bool:
            try:
                connection.execute("select 1")
            except psycopg.OperationalError:
                return True
            return False

        until(cut, 2, "the connection is cut")
    assert STRANGER in refused(public, name)


def certificate(directory: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form: Any = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "api.crt").write_bytes(made.public_bytes(pem))
    (directory / "api.key").write_bytes(key.private_bytes(*form))
    return str(directory / "api.crt"), str(directory / "api.key")


def test_the_api_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Instance(warm_pool="0")
    try:
        chain, key = certificate(made.home)
        made.env |= {"PGHERD_TLS_CERTIFICATE": chain, "PGHERD_TLS_KEY": key}
        made.up()
        assert made.endpoint == f"https://127.0.0.1:{made.port}/v2"
        with pytest.raises(requests.exceptions.SSLError):
            made.client().list_zones()
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(f"http://127.0.0.1:{made.port}/v2/zone", timeout=5)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", chain)
        (zone,) = made.client().list_zones()["zones"]
        assert zone["api-endpoint"] == made.endpoint
        assert made.client().list_dbaas_services() == {"dbaas-services": []}
        made.env["REQUESTS_CA_BUNDLE"] = chain
        made.run("service", "list")
        made.up()
    finally:
        made.clear()
