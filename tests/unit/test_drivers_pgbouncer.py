"""pgbouncer.ini and its hba file, rendered."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pgherd.drivers import pgbouncer
from pgherd.errors import Unsupported
from pgherd.spec import Admin, Memory, NodeSpec, Pool, Tls

_SPEC = NodeSpec(
    node_id="n", service_id="s", generation=1, node_name="a-1", desired="running", version="15", port=21600,
    memory=Memory(16, 64, 16, 4), max_connections=25, settings={}, ip_filter=[], loopback=True,
    admin=Admin("avnadmin", ""), tls=Tls("", ""), disk_bytes=0,
)  # fmt: skip


def _render(**changes: object) -> list[str]:
    spec = msgspec.structs.replace(_SPEC, **changes)
    return pgbouncer.render(spec, run=Path("/h's/run"), config=Path("/h/config"), files=70_000).splitlines()


def test_a_pool_leads_to_its_database_over_the_socket() -> None:
    lines = _render(pools=[Pool("p", "it's", "session", 7, "u")])
    assert "p = host='/h''s/run' port=21600 dbname='it''s' pool_mode=session pool_size=7" in lines
    assert {"listen_port = 21601", "client_tls_sslmode = require", "server_reset_query_always = 0"} <= set(lines)
    assert not any(line.startswith("*") for line in lines)


def test_pools_for_all_users_share_what_no_pool_is_promised_and_never_ask_for_more() -> None:
    pools = [Pool("mine", "d", "session", 3, "u"), Pool("a", "d", "session", 4), Pool("b", "d", "session", 2)]
    lines = _render(pools=pools, pooler={"autodb_pool_size": 2})
    bounds = {line.split()[0]: line.rpartition("max_db_connections=")[2] for line in lines if "max_db_conn" in line}
    assert bounds == {"a": "8", "b": "6", "*": "0"}
    assert 3 + 8 + 6 + 2 <= _SPEC.max_connections - 5 < 3 + 8 + 6 + 2 + 2
    assert "max_db_connections=20" in "".join(_render(pools=[Pool("whole", "d", "session", 20)]))
    assert "max_db_connections=21" in "".join(_render(pools=[Pool("older", "d", "session", 21)]))


@pytest.mark.parametrize(
    "name", ["pgbouncer", "postgres", "template1", "pgherd_auth", "*", "a=b", "a b", 'a"', "", "é"]
)
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(Unsupported):
        _render(pools=[Pool(name, "d", "session", 1)])


@pytest.mark.parametrize(
    "pooler",
    [
        {"auth_query": "SELECT 1"}, {"logfile": "/tmp/x"}, {"min_pool_size": -1}, {"server_lifetime": 59},
        {"server_lifetime": True}, {"server_lifetime": "60\nlogfile = /x"}, {"ignore_startup_parameters": "options"},
        {"autodb_pool_size": 1, "autodb_pool_mode": "x\ny"},
    ],
)  # fmt: skip
def test_parameters_that_are_no_tenants_are_refused(pooler: dict[str, object]) -> None:
    with pytest.raises((Unsupported, ValueError)):
        _render(pooler=pooler)


def test_a_pool_with_a_user_is_closed_to_the_rest_even_beside_pools_that_nobody_named() -> None:
    spec = msgspec.structs.replace(_SPEC, pools=[Pool("p", "d", "session", 1, "me")], pooler={"autodb_pool_size": 1})
    lines = pgbouncer.render_hba(spec, ["192.0.2.0/24"]).splitlines()
    own, closed = (
        lines.index('hostssl "p" "me" 192.0.2.0/24 scram-sha-256'),
        lines.index('host "p" all 0.0.0.0/0 reject'),
    )
    assert own < closed < lines.index("hostssl all all 192.0.2.0/24 scram-sha-256")
    assert lines[1] == "host pgherd_auth,pgbouncer,postgres,template0,template1 all 0.0.0.0/0 reject"


def test_clients_grow_with_the_plan_within_bounds_and_open_files() -> None:
    gib = 1 << 30
    found = {
        memory: next(line for line in _render(memory_bytes=memory) if line.startswith("max_client_conn"))
        for memory in (0, 2 * gib, 16 * gib, 225 * gib)
    }
    assert [line.rpartition(" ")[2] for line in found.values()] == ["5000", "5000", "8000", "50000"]
    assert pgbouncer.most_clients(50_000, 4096) == 3072


def test_only_new_versions_serve() -> None:
    assert [pgbouncer.Program("", version).serves for version in ("1.18.0", "1.21.0", "1.24.1", "2.0")] == [
        False, True, True, True,
    ]  # fmt: skip
