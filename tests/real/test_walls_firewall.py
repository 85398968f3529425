"""The packet filter: who gets through to a service's ports, and where a service's processes may call."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgherd import unprivileged
from pgherd.drivers.firewall import Door, Firewall, render
from pgherd.errors import HostFault
from pgherd.spec import NodeSpec
from tests.plugins.host import PASSWORD, RunningHost, rooted, until

_CALL = """
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition("|")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as caller:
        caller.settimeout(2)
        try:
            caller.connect((host, int(port)))
            print("open")
        except OSError as error:
            print(type(error).__name__)
"""


@contextlib.contextmanager
def listening(port: int, address: str = "::") -> Iterator[None]:
    """Somebody listens on this port, for IPv4 and IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(50)
        yield


def reach(port: int, source: str, target: str = "") -> str:
    """What a client at `source` meets: `open`, `reset` or `silence`."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family) as caller:
        caller.settimeout(2)
        caller.bind((source, 0))
        try:
            caller.connect((target or ("::1" if family == socket.AF_INET6 else "127.0.0.1"), port))
        except ConnectionRefusedError:
            return "reset"
        except TimeoutError:
            return "silence"
        return "open"


def calls(host: RunningHost, spec: NodeSpec, *addresses: str) -> list[str]:
    """What a process of the service meets at `HOST|PORT`."""
    answer = unprivileged.run(host.account(spec), ["/usr/bin/python3", "-c", _CALL, *addresses], timeout=30)
    assert answer.code == 0, answer.err
    return answer.out.decode().split()


@contextlib.contextmanager
def namespace(name: str, there: str, here: str) -> Iterator[list[str]]:
    """Another machine, as it were: the words before a command that runs there."""
    ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)  # noqa: E731
    ip("netns", "add", name)
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        ip("addr", "add", f"{here}/30", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", f"{there}/30", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        yield ["ip", "netns", "exec", name]
    finally:
        ip("netns", "del", name)


def tables() -> str:
    """The tables that the kernel has."""
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def firewall(tmp_path: Any) -> Iterator[Firewall]:
    """A firewall of its own, without an agent."""
    made = Firewall(tmp_path, [(1, 1)])
    yield made
    made.remove()
    assert made.table not in tables()


@rooted
def test_all_ports_of_a_service_refuse_strangers_before_the_handshake(firewall: Firewall) -> None:
    port = 29500
    firewall.begin({"a": Door(port, ("127.0.0.2/32", "fd00::/8"), "s", None)})
    assert firewall.problem == ""
    assert firewall.ports() == {29500, 29501, 29502, 29503}
    for offset in range(4):
        with listening(port + offset):
            assert reach(port + offset, "127.0.0.2") == "open"
            assert reach(port + offset, "127.0.0.3") == "reset"
            assert reach(port + offset, "::1") == "reset"
            assert reach(port + offset, "::ffff:127.0.0.2", "::ffff:127.0.0.1") == "open"
            assert reach(port + offset, "::ffff:127.0.0.3", "::ffff:127.0.0.1") == "reset"
    for other in (port - 1, port + 4):
        with listening(other):
            assert reach(other, "127.0.0.3") == reach(other, "::1") == "open"
    firewall.put("a", Door(port, ("::1/128", "0.0.0.0/0", "10.0.0.0/8"), "s", None))
    with listening(port):
        assert reach(port, "127.0.0.3") == reach(port, "::1") == "open"
    firewall.put("a", Door(port, (), "s", None))
    with listening(port):
        assert reach(port, "127.0.0.2") == reach(port, "::1") == "reset"
    firewall.drop("a")
    with listening(port):
        assert reach(port, "127.0.0.3") == "open"
    assert firewall.ports() == set()


@rooted
def test_other_machines_are_told_apart(firewall: Firewall) -> None:
    with namespace("pgherdt", "198.18.77.2", "198.18.77.1") as there:
        for networks, expected in (((), "ConnectionRefusedError"), (("198.18.77.2/32",), "open")):
            firewall.begin({"a": Door(29510, networks, "s", None)})
            with listening(29511):
                argv = [*there, "/usr/bin/python3", "-c", _CALL, "198.18.77.1|29511"]
                said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout
            assert said.split() == [expected]


@rooted
def test_five_hundred_services_are_written_as_one(firewall: Firewall) -> None:
    networks = tuple(f"10.{n}.0.0/16" for n in range(20))
    firewall.begin({str(n): Door(20000 + 4 * n, networks, str(n), 400000 + n) for n in range(500)})
    assert len(firewall.ports()) == 2000
    started = time.monotonic()
    firewall.put("7", Door(20028, ("127.0.0.9/32",), "7", 400007))
    assert time.monotonic() - started < 1


@rooted
@pytest.mark.parametrize(
    "script",
    ["delete table inet {0}", "flush table inet {0}", "flush set inet {0} ports", "flush chain inet {0} arriving"],
)
def test_what_somebody_flushed_is_there_again(firewall: Firewall, script: str) -> None:
    firewall.begin({"a": Door(29520, (), "s", None)})
    subprocess.run(["nft", script.format(firewall.table)], check=True)
    firewall.keep()
    with listening(29521):
        assert reach(29521, "127.0.0.1") == "reset"


@rooted
def test_tables_of_others_stay_and_do_not_keep_us_busy(firewall: Firewall, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "pgherdtest_foreign"
    subprocess.run(["nft", f"add table inet {foreign}; add chain inet {foreign} kept"], check=True)
    try:
        firewall.begin({"a": Door(29530, (), "s", None)})
        subprocess.run(["nft", f"add chain inet {foreign} more"], check=True)
        monkeypatch.setattr(firewall, "_write", lambda wished: pytest.fail("written again"))
        firewall.keep()
        monkeypatch.undo()
        firewall.remove()
        listed = subprocess.run(["nft", "list", "table", "inet", foreign], capture_output=True, text=True, check=True)
        assert "chain kept" in listed.stdout and "chain more" in listed.stdout
    finally:
        subprocess.run(["nft", "delete", "table", "inet", foreign], check=True)


@pytest.mark.parametrize(
    ("port", "network", "uid"),
    [(70000, "10.0.0.0/8", 1), (0, "10.0.0.0/8", 1), (2000, "10.0.0.0/8; flush ruleset", 1), (2000, "fe80::1%x", 1),
     (2000, "example.com", 1), (2000, "10.0.0.0/8", 0)],
)  # fmt: skip
def test_nothing_but_numbers_and_networks_gets_into_the_rules(port: int, network: str, uid: int) -> None:
    with pytest.raises(HostFault):
        render("t", [Door(port, (network,), "s", uid)], [])


def test_of_two_nodes_with_one_port_the_later_has_it() -> None:
    text = render("t", [Door(2000, ("10.0.0.0/8",), "a", 7), Door(2002, ("10.1.0.0/16", "::ffff:9.9.9.9"), "b", 8)], [])
    assert "2002-2005 . 10.1.0.0/16" in text and "2002-2005 . 9.9.9.9/32" in text and "2000" not in text


# --- with the agent ------------------------------------------------------------------------------------------


@rooted
def test_a_change_of_the_filter_is_in_force_within_a_second(host: RunningHost) -> None:
    spec = host.running(loopback=False, ip_filter=["127.0.0.1/32"])
    host.connect(spec).close()
    assert reach(spec.port, "127.0.0.5") == "reset"
    started = time.monotonic()
    spec = host.change(spec, ip_filter=["127.0.0.5/32"])
    until(lambda: reach(spec.port, "127.0.0.1") == "reset", 3)
    assert time.monotonic() - started < 1
    assert reach(spec.port, "127.0.0.5") == "open"
    host.until_in_force(spec)
    host.until_in_force(host.change(spec, desired="absent"), 60)
    assert not set(range(spec.port, spec.port + 4)) & host.agent.host.firewall.ports()


@rooted
def test_the_agent_raises_a_flushed_wall_and_one_of_before_its_start(host: RunningHost) -> None:
    spec = host.running(loopback=False)
    table = host.agent.host.firewall.table
    for restart in (False, True):
        if restart:
            host.stop()
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)
        if restart:
            assert reach(spec.port, "127.0.0.1") == "open"
            host.start()
        until(lambda: reach(spec.port, "127.0.0.1") == "reset", 5)
    host.until_in_force(host.change(spec, desired="absent"), 60)


@rooted
def test_a_service_calls_itself_and_nobody_else_on_this_machine(host: RunningHost) -> None:
    spec, other = host.running(), host.running(service_id="other")
    sibling = host.running()
    api = host.settings.listen_address[1]
    with listening(api), listening(api + 1), listening(other.port + 1), listening(spec.port + 3):
        mine = [f"127.0.0.1|{spec.port}", f"::1|{spec.port}", f"127.0.0.1|{spec.port + 3}", f"127.0.0.1|{sibling.port}"]
        assert calls(host, spec, *mine) == ["open"] * 4
        foreign = [f"{address}|{port}" for address in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::ffff:127.0.0.1")
                   for port in (other.port, other.port + 1, api)]  # fmt: skip
        assert calls(host, spec, *foreign, f"127.0.0.1|{api + 1}") == ["ConnectionRefusedError"] * 16
        address = _own_address()
        if address:
            assert calls(host, spec, f"{address}|{other.port}", f"{address}|{api}") == ["ConnectionRefusedError"] * 2
        assert calls(host, spec, "169.254.169.254|80") == ["ConnectionRefusedError"]
        # Everybody else on the machine calls as before.
        assert reach(api, "127.0.0.1") == reach(api + 1, "127.0.0.1") == "open"


@rooted
def test_a_service_calls_another_where_its_filter_says_so_and_only_so_long(host: RunningHost) -> None:
    """That local clients pass, because services are advertised on a loopback address, lets no service pass."""
    spec, other = host.running(), host.running(service_id="other")
    with host.connect(spec) as connection:
        connection.execute("CREATE EXTENSION dblink")
        text = f"host=127.0.0.1 port={other.port} dbname=defaultdb user=avnadmin password={PASSWORD}"
        with pytest.raises(psycopg.OperationalError, match="Connection refused"):
            connection.execute("SELECT dblink_connect('a', %s)", [text])
        other = host.change(other, ip_filter=["127.0.0.1/32"])
        host.until_in_force(other)
        with listening(other.port + 3):
            wanted = [f"127.0.0.1|{other.port}", f"::1|{other.port}", f"127.0.0.1|{other.port + 3}"]
            assert calls(host, spec, *wanted) == ["open", "ConnectionRefusedError", "ConnectionRefusedError"]
        connection.execute("SELECT dblink_connect('a', %s)", [text])
        ask = "SELECT * FROM dblink('a', 'SELECT current_setting(''port'')::int') AS t(port int)"
        assert connection.execute(ask).fetchone() == (other.port,)
        other = host.change(other, ip_filter=["192.0.2.0/24", "::1/128"])
        host.until_in_force(other)
        assert calls(host, spec, f"127.0.0.1|{other.port}", f"::1|{other.port}") == ["ConnectionRefusedError", "open"]
        with pytest.raises(psycopg.OperationalError):
            connection.execute(ask)


@rooted
def test_a_service_cannot_answer_on_a_port_of_the_platform(host: RunningHost) -> None:
    """Whoever waits on the port that another service will get, or that the API has left, hears nobody."""
    spec = host.running()
    account, script = host.account(spec), "import socket,time; s=socket.create_server(('',{0})); time.sleep(60)"
    api = host.settings.listen_address[1]
    for port, expected in ((32764, "silence"), (api, "silence"), (spec.port + 2, "open")):
        argv = [*unprivileged.prefix(account.uid, account.gid), "/usr/bin/python3", "-c", script.format(port)]
        squatter = subprocess.Popen(argv)
        try:
            until(lambda port=port: _listens(port), 10)
            assert reach(port, "127.0.0.1") == expected
        finally:
            squatter.kill()
            squatter.wait()


def _listens(port: int) -> bool:
    listed = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return bool(listed.stdout.strip())


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.77", 9))
        except OSError:
            return ""
        found: str = probe.getsockname()[0]
        return "" if found.startswith("127.") else found


@rooted
def test_the_table_of_an_instance_that_is_gone_goes_too(firewall: Firewall, tmp_path: Any) -> None:
    """Its users' numbers may be others' by now, which it would cut off."""
    gone = tmp_path / "gone"
    gone.mkdir()
    left = Firewall(gone, [(1, 1)])
    left.begin({"node": Door(31000, ("127.0.0.0/8",), "service", 1)})
    assert left.table in tables()
    firewall.begin({})
    assert left.table in tables(), "its home is there"
    gone.rmdir()
    firewall.begin({})
    assert left.table not in tables()
