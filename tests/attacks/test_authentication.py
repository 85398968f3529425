"""Rows 41, 44 to 46, 51 and 58 to 61: names and values, logins, walls between tenants, the platform's connections."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from pgherd import sealing
from pgherd.spec import Admin, NodeSpec
from tests.attacks.conftest import SECRET, Fort
from tests.plugins.host import MAJOR, PASSWORD, RunningHost, verifier

_HOSTILE = (
    "x'\nssl = off\n#",
    "x\\'\nssl = off",
    "%u%d\n\tport = 1",
    "'; DROP DATABASE defaultdb; --",
    "a\r\nssl=off",
    "#\u2028",
)


@pytest.fixture(scope="module")
def spare(attacked_host: RunningHost) -> Iterator[NodeSpec]:
    """A second service, of another tenant."""
    yield attacked_host.running(node_name="b'-1\nssl = off", admin=_admin(attacked_host, 'x"; ALTER ROLE y; --'))


def _admin(host: RunningHost, name: str, password: str = PASSWORD) -> Admin:
    return Admin(name, sealing.seal(sealing.public_key(host.agent.host.private_key), verifier(password)))


def _fails(fort: Fort, **more: object) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        fort.connect(**more).close()  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("value", _HOSTILE)
def test_row_41_values_of_settings_stay_values(fort: Fort, value: str) -> None:
    old = fort.spec
    fort.spec = fort.host.change(old, settings={"log_line_prefix": value})
    try:
        fort.host.until_in_force(fort.spec)
        assert fort.superuser("SELECT md5(current_setting('log_line_prefix')) = md5($v$" + value + "$v$)") == "t"
        assert fort.superuser("SHOW ssl") == "on"
    finally:
        fort.spec = fort.host.change(fort.spec, settings={})
        fort.host.until_in_force(fort.spec)


def test_row_41_hostile_names_of_node_and_admin_stay_names(attacked_host: RunningHost, spare: NodeSpec) -> None:
    name = 'x"; ALTER ROLE y; --'
    with attacked_host.connect(spare, user=name) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (name,)
        ours = "SELECT current_setting('ssl'), current_setting('cluster_name')"
        newline = "?" if int(MAJOR) < 16 else r"\x0a"
        assert connection.execute(ours).fetchone() == ("on", f"b'-1{newline}ssl = off")


@pytest.mark.parametrize("password", ["x'; DROP ROLE plain; --", 'x"\\', "\u00e9\u4e2d", " ", "x" * 200])
def test_row_41_passwords(fort: Fort, password: str) -> None:
    with fort.connect() as connection:
        connection.execute("CREATE ROLE odd LOGIN")
        try:
            connection.execute(psycopg.sql.SQL("ALTER ROLE odd PASSWORD {}").format(password))
            fort.connect("odd", password=password).close()
            assert "password authentication failed" in _fails(fort, user="odd", password=password + "x")
        finally:
            connection.execute("DROP ROLE odd")


def test_row_44_no_plaintext_no_old_tls_no_md5(fort: Fort, attacker: str) -> None:
    assert "no encryption" in _fails(fort, user=attacker, sslmode="disable")
    _fails(fort, user=attacker, ssl_min_protocol_version="TLSv1", ssl_max_protocol_version="TLSv1.1")
    fort.connect(attacker, channel_binding="require").close()
    if attacker == "avnadmin":
        md5 = "SET password_encryption = md5; CREATE ROLE weak LOGIN PASSWORD 'x'"
        assert fort.tries(attacker, md5) == [None]
        assert "password authentication failed" in _fails(fort, user="weak", password="x")
        fort.tries(attacker, "DROP ROLE weak")


def test_row_45_a_certificate_is_no_login(fort: Fort, attacker: str) -> None:
    """Not even the service's own certificate and key, which code in the server could read."""
    files = {"sslcert": str(fort.host.home / "test.crt"), "sslkey": str(fort.host.home / "test.key")}
    os.chmod(files["sslkey"], 0o600)
    for user in (attacker, "postgres"):
        _fails(fort, user=user, password=None, **files)
        _fails(fort, user=user, password="", **files)


def test_row_46_expired_and_disabled_users(fort: Fort) -> None:
    for change in ("VALID UNTIL '2001-01-01'", "NOLOGIN", "PASSWORD NULL", "CONNECTION LIMIT 0"):
        assert fort.tries("avnadmin", f"ALTER ROLE plain {change}") == [None]
        _fails(fort, user="plain")
        back = f"ALTER ROLE plain LOGIN PASSWORD '{SECRET}' VALID UNTIL 'infinity' CONNECTION LIMIT -1"
        assert fort.tries("avnadmin", back) == [None]
    fort.connect("plain").close()


def test_row_51_cancel_keys_are_not_guessed(fort: Fort, attacked_host: RunningHost, spare: NodeSpec) -> None:
    with fort.connect() as connection:
        result: list[object] = []
        query = threading.Thread(
            target=lambda: result.append(connection.execute("SELECT pg_sleep(1), 'done'").fetchone())
        )
        query.start()
        for guess in range(200):
            for port in (fort.spec.port, spare.port) if guess < 5 else (fort.spec.port,):
                with socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.sendall(struct.pack("!iiii", 16, 80877102, connection.info.backend_pid, guess * 7919))
        query.join()
    assert result == [("", "done")]


def test_row_58_a_new_service_on_the_port_of_a_deleted_one(attacked_host: RunningHost) -> None:
    old = attacked_host.running()
    attacked_host.connect(old).execute("CREATE TABLE left_behind (a int)")
    directory, account = attacked_host.directory(old), attacked_host.account(old)
    attacked_host.until_in_force(attacked_host.change(old, desired="absent"))
    assert not directory.exists()
    new = attacked_host.running(port=old.port, admin=_admin(attacked_host, "avnadmin", "another-password"))
    with pytest.raises(psycopg.OperationalError):
        attacked_host.connect(new)
    with attacked_host.connect(new, password="another-password") as connection:
        assert connection.execute("SELECT to_regclass('left_behind')").fetchone() == (None,)
    if account is not None:
        assert attacked_host.account(new).uid != account.uid
    attacked_host.change(new, desired="absent")


def test_row_59_the_filter_holds_for_every_way_to_the_port(attacked_host: RunningHost, spare: NodeSpec) -> None:
    user = 'x"; ALTER ROLE y; --'
    closed = attacked_host.change(spare, loopback=False, ip_filter=[])
    attacked_host.until_in_force(closed)
    for host in ("127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"):
        with pytest.raises(psycopg.OperationalError):
            attacked_host.connect(closed, host=host, user=user, connect_timeout=2)
    six = attacked_host.change(closed, loopback=False, ip_filter=["::1/128"])
    attacked_host.until_in_force(six)
    attacked_host.connect(six, host="::1", user=user).close()
    for host in ("127.0.0.1", "::ffff:127.0.0.1"):
        with pytest.raises(psycopg.OperationalError):
            attacked_host.connect(six, host=host, user=user, connect_timeout=2)
    attacked_host.until_in_force(attacked_host.change(six, loopback=True, ip_filter=[]))


def test_row_60_lines_of_the_log_are_not_forged(fort: Fort) -> None:
    forged = "2026-01-01 00:00:00.000 UTC [1] PANIC:  forged"
    fort.tries("avnadmin", f"DO $$ BEGIN RAISE LOG 'x%{forged}', E'\\n'; END $$", f"SELECT 'a\n{forged}'::int")
    with contextlib.suppress(psycopg.OperationalError):
        fort.connect("avnadmin", application_name=f"x\n{forged}").close()
    lines = fort.host.agent.supervisor.last_lines(f"node-{fort.spec.node_id}", 1 << 16)
    own = [line for line in lines if "forged" in line and line.split("  ", 1)[-1].startswith("2026-01-01")]
    assert own == []


def test_row_61_the_platform_has_connections_left(fort: Fort) -> None:
    with contextlib.ExitStack() as stack:
        with pytest.raises(psycopg.OperationalError) as caught:
            for _ in range(fort.spec.max_connections + 1):
                stack.enter_context(contextlib.closing(fort.connect("plain")))
        assert "remaining connection slots" in str(caught.value)
        assert fort.superuser("SELECT 1") == "1"
        busy = fort.host.change(fort.spec, settings={"deadlock_timeout": 2500})
        assert fort.host.until_in_force(busy).state == "running"
        fort.spec = busy
    deadline = time.monotonic() + 5
    while int(fort.superuser("SELECT count(*) FROM pg_stat_activity WHERE usename = 'plain'")) > 0:
        assert time.monotonic() < deadline
