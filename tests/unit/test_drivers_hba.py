"""pg_hba.conf says who may connect, and the cut says whom it throws out."""

from __future__ import annotations

import pytest

from pgherd.drivers import hba
from pgherd.errors import HostFault


def _rules(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_an_empty_filter_lets_nobody_in_but_the_platform() -> None:
    rules = _rules(hba.render_hba([], loopback=False))
    assert rules[0] == ["local", "all,replication", "postgres", "peer", "map=platform"]
    assert rules[1] == ["local", "postgres", "pgherd_monitor", "peer", "map=platform"]
    assert [rule for rule in rules[2:] if rule[-1] != "reject"] == []


def test_loopback_clients_pass_while_the_service_is_advertised_there() -> None:
    allowed = [rule[3] for rule in _rules(hba.render_hba([], loopback=True)) if rule[-1] == "scram-sha-256"]
    assert allowed == ["127.0.0.0/8", "::1/128"]


def test_every_network_of_the_filter_passes_with_tls_and_scram_only() -> None:
    rules = _rules(hba.render_hba(["192.0.2.7", "198.51.100.9/24", "2001:db8::/32", "192.0.2.7/32"], loopback=False))
    passing = [rule for rule in rules if rule[-1] == "scram-sha-256"]
    assert [rule[3] for rule in passing] == ["192.0.2.7/32", "198.51.100.0/24", "2001:db8::/32"]
    assert {rule[0] for rule in passing} == {"hostssl"}


def test_replication_and_the_superuser_are_refused_before_anybody_passes() -> None:
    rules = _rules(hba.render_hba(["0.0.0.0/0"], loopback=True))
    first_open = next(i for i, rule in enumerate(rules) if rule[-1] == "scram-sha-256")
    assert ["host", "replication", "all", "all", "reject"] in rules[:first_open]
    assert ["host", "all", "postgres,pgherd_pooler,pgherd_monitor", "all", "reject"] in rules[:first_open]


@pytest.mark.parametrize("entry", ["example.com", "10.0.0.0/8 x", "10.0.0.0/8\nhost all all all trust", "", "1.1.1"])
def test_what_is_no_network_is_refused(entry: str) -> None:
    with pytest.raises(HostFault):
        hba.render_hba([entry], loopback=False)


def test_a_hostile_user_name_cannot_leave_its_quotes() -> None:
    with pytest.raises(HostFault):
        hba.render_ident('a" postgres\nplatform "b')


def test_the_cut_names_the_allowed_networks() -> None:
    assert "'{10.0.0.0/8}'::inet[]" in hba.count_cut(["10.0.0.0/8"], loopback=False)
    assert "'{}'::inet[]" in hba.count_cut([], loopback=False)


def test_pools_open_the_socket_for_everybody_but_the_platform() -> None:
    assert "trust" not in hba.render_hba([], True) and "pools" not in hba.render_ident("svc")
    old = hba.render_hba([], True, pooled=True).splitlines()
    new = hba.render_hba([], True, pooled=True, major=17).splitlines()
    closed = ["local all pgherd_pooler reject", "local postgres,template1 all reject"]
    assert old[1] == new[1] == "local all,replication postgres peer map=platform"
    assert [old.index(line) < old.index("local all all trust") for line in closed] == [True, True]
    assert new[: old.index("local all all trust")] == old[: old.index("local all all trust")]
    assert "local all all peer map=pools" in new and 'pools "svc" all' in hba.render_ident("svc", pooled=True, major=17)
