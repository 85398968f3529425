"""Names, networks and times of day."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.errors import Incorrect
from pgherd.model.name import (
    admin_username,
    database_name,
    ip_filter,
    locale,
    maintenance_time,
    network,
    password,
    pool_name,
    service_name,
    username,
)


@pytest.mark.parametrize("name", ["a", "db", "my-db-2", "a" * 63, "x1"])
def test_service_names(name: str) -> None:
    assert service_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "-a", "a-", "a_b", "a.b", "a/b", "..", "a" * 64, "é", "a\n", "a b", "a\0"]
)
def test_service_names_that_something_cannot_bear(name: str) -> None:
    with pytest.raises(Incorrect, match="lower-case letters, digits and hyphens"):
        service_name(name)


@pytest.mark.parametrize("name", ["avnadmin", "_x", "0root", "a.b-c_D", "A" * 63, "pgadmin", "my_pg_user"])
def test_usernames(name: str) -> None:
    assert admin_username(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a" * 64, "é", "a b", 'a"', "a'", "a\n", "a;b"])
def test_usernames_of_a_wrong_form(name: str) -> None:
    with pytest.raises(Incorrect, match="admin-username: must be"):
        admin_username(name)


@pytest.mark.parametrize(
    "name", ["postgres", "Postgres", "pg_monitor", "PG_x", "pgherd", "pgherd_db", "public", "none", "all"]
)
def test_reserved_usernames(name: str) -> None:
    with pytest.raises(Incorrect, match="reserved"):
        admin_username(name)


@pytest.mark.parametrize(
    ("sent", "canonical"),
    [
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.20.0.0/16", "10.20.0.0/16"),
        ("10.20.3.4/16", "10.20.0.0/16"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("::/0", "::/0"),
        ("2001:DB8::1/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
    ],
)
def test_networks(sent: str, canonical: str) -> None:
    assert network(sent) == canonical
    assert ip_filter([sent]) == [sent]


NO_NETWORKS = (
    *("", "all", "samenet", "10", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255", "010.0.0.1"),
    *("fe80::1%eth0", "::/129", "1.2.3.4/", "1.2.3.4 ", "1.2.3.4\n", "host.example", "1.2.3.4,5.6.7.8"),
    *("0.0.0.0/0 trust", "1.2.3.4/-1"),
)


@pytest.mark.parametrize("sent", NO_NETWORKS)
def test_what_is_no_network(sent: str) -> None:
    with pytest.raises(Incorrect, match=r"^ip-filter\[1\]: must be a network"):
        ip_filter(["10.0.0.0/8", sent])


def test_every_wrong_entry_is_named_and_the_number_is_bounded() -> None:
    with pytest.raises(Incorrect, match=r"ip-filter\[0\].*ip-filter\[2\]"):
        ip_filter(["x", "10.0.0.0/8", "y"])
    with pytest.raises(Incorrect, match="at most 1024"):
        ip_filter(["10.0.0.0/8"] * 1025)
    assert ip_filter([]) == []


@given(st.text(max_size=50))
def test_any_text_is_a_network_or_refused(text: str) -> None:
    try:
        ip_filter([text])
    except Incorrect:
        return
    ipaddress.ip_network(network(text))


@pytest.mark.parametrize("time", ["00:00:00", "23:59:59", "02:51:27"])
def test_times(time: str) -> None:
    assert maintenance_time(time) == time


@pytest.mark.parametrize("time", ["24:00:00", "12:60:00", "1:00:000", "12-00-00", "12:00:0\n", "aa:bb:cc", "١٢:٠٠:٠٠"])
def test_times_that_do_not_exist(time: str) -> None:
    with pytest.raises(Incorrect, match="such as 03:30:00"):
        maintenance_time(time)


@pytest.mark.parametrize("name", ["a", "0A_b.c-D", "x" * 40])
def test_names_of_users_databases_and_pools(name: str) -> None:
    assert username(name) == database_name(name) == pool_name(name) == name
    assert username(name + "y" * (63 - len(name)))


@pytest.mark.parametrize("rule", [username, database_name, pool_name])
@pytest.mark.parametrize(
    "name", ["postgres ", "*", "", "a\n", "a b", "a'", 'a"', "é", "pоstgres", "-a", ".a", "a" * 64, "a;b", "a\\", "%s"]
)
def test_names_that_something_reads_otherwise(rule: Callable[[str], str], name: str) -> None:
    with pytest.raises(Incorrect, match="must be 1 to"):
        rule(name)


@pytest.mark.parametrize("rule", [username, database_name, pool_name])
@pytest.mark.parametrize(
    "name", ["pgbouncer", "PgBouncer", "postgres", "template1", "Template0", "pg_x", "pgherd_pooler"]
)
def test_names_that_others_have(rule: Callable[[str], str], name: str) -> None:
    with pytest.raises(Incorrect, match="reserved"):
        rule(name)


def test_databases_have_at_most_40() -> None:
    with pytest.raises(Incorrect, match="1 to 40"):
        database_name("a" * 41)


def test_passwords_are_checked_and_never_repeated() -> None:
    assert password("of-my_own1") == "of-my_own1"
    for wrong in ("short", "not allowed", "x" * 257, "quote'quote", "ümlaut-password"):
        with pytest.raises(Incorrect, match="8 to 256") as caught:
            password(wrong)
        assert wrong not in caught.value.message


@pytest.mark.parametrize("name", ["C", "C.UTF-8", "en_US.UTF-8", "de_DE@euro"])
def test_locales(name: str) -> None:
    assert locale("lc-ctype", name) == name


@pytest.mark.parametrize("name", ["", "../x", "a b", "a'b", "é", "C\n", "/usr"])
def test_what_is_no_locale(name: str) -> None:
    with pytest.raises(Incorrect, match=r"^lc-ctype: must be the name of a locale"):
        locale("lc-ctype", name)
