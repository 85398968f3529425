"""Rows 42 and 43 at the API: names of pools that mean something else, and settings outside the list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.plugins.instance import Instance

_POOLS = (
    "pgbouncer", "PgBouncer", "*", "postgres", "template0", "template1", "pgherd_auth", "pgherd_pooler", "all", "", " ",
    "a=b", "a b", 'a"', "a'", "a;b", "a#b", "a%b", "a\\b", "a\nb", "a\0b", "\u0430dmin", "-", "x" * 64, "[pgbouncer]",
)  # fmt: skip
#: As JSON texts: a client's library may not even send them.
_SETTINGS = (
    '{"fsync": false}', '{"archive_command": "touch /tmp/x"}', '{"shared_preload_libraries": "x"}', '{"port": 1}',
    '{"ssl": false}', '{"log_line_prefix": 5}', '{"jit": "on"}', '{"jit": 1}', '{"deadlock_timeout": "1s"}',
    '{"deadlock_timeout": 1e400}', '{"deadlock_timeout": NaN}', '{"deadlock_timeout": Infinity}',
    '{"deadlock_timeout": -Infinity}', '{"deadlock_timeout": 99999999999999999999999999999}',
    '{"deadlock_timeout": -1}', '{"deadlock_timeout": 500.5}', '{"deadlock_timeout": true}',
    '{"deadlock_timeout": []}', '{"deadlock_timeout": {}}', '{"bgwriter_lru_multiplier": 1e309}',
    '{"autovacuum": {"autovacuum_vacuum_scale_factor": NaN}}', '{"autovacuum": {"autovacuum_naptime": "x"}}',
    '{"autovacuum": {"fsync": 1}}', '{"autovacuum": []}', '{"timezone": "x\\u0000y"}',
    '{"timezone": "../../etc/passwd"}',
    '{"log_line_prefix": "\'\\nssl = off"}', "[]", '"x"', "5", "NaN", '{"pg_settings": {}}', '{"": 1}',
)  # fmt: skip
_POOLER = (
    '{"auth_query": "SELECT 1"}', '{"logfile": "/tmp/x"}', '{"admin_users": "avnadmin"}', '{"min_pool_size": NaN}',
    '{"min_pool_size": -1}', '{"min_pool_size": 1e9}', '{"server_lifetime": "60\\nlogfile = /x"}',
    '{"autodb_pool_mode": "x"}', '{"autodb_pool_size": 1.5}', '{"ignore_startup_parameters": ["options"]}',
    '{"ignore_startup_parameters": "search_path"}', '{"max_prepared_statements": 99999999999999999999}', "[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(instance: Instance) -> Iterator[str]:
    """What is attacked; afterwards it is as it was."""
    name = instance.create()
    before = _seen(instance, name)
    yield name
    assert _seen(instance, name) == before
    instance.delete(name)


def _seen(instance: Instance, name: str) -> Any:
    shown = instance.client().get_dbaas_service_pg(name=name)
    return {what: shown[what] for what in ("connection-pools", "pg-settings", "pgbouncer-settings", "state", "users")}


def _send(instance: Instance, method: str, path: str, body: str) -> requests.Response:
    """A signed request whose body is exactly this text."""
    headers = {"Content-Type": "application/json"}
    request = requests.Request(method, instance.endpoint + path, data=body.encode("utf-8"), headers=headers)
    return instance.send(instance.sign(request))


def _refused(answer: requests.Response, *fields: str) -> None:
    assert answer.status_code == 400, (answer.status_code, answer.text)
    message = answer.json()["message"]
    assert message.startswith(fields) and len(message) < 1000 and message.isprintable(), message


@pytest.mark.parametrize("name", _POOLS)
def test_row_42_names_of_pools(instance: Instance, service: str, name: str) -> None:
    body = json.dumps({"name": name, "database-name": "defaultdb"})
    _refused(_send(instance, "POST", f"/dbaas-postgres/{service}/connection-pool", body), "name: ", "The request body ")
    body = json.dumps({"name": "harmless", "database-name": name})
    _refused(
        _send(instance, "POST", f"/dbaas-postgres/{service}/connection-pool", body),
        "database-name: ",
        "The request body ",
    )


@pytest.mark.parametrize("settings", _SETTINGS)
def test_row_43_settings_of_postgresql(instance: Instance, service: str, settings: str) -> None:
    answer = _send(instance, "PUT", f"/dbaas-postgres/{service}", f'{{"pg-settings": {settings}}}')
    _refused(answer, "pg-settings", "The request body ")


@pytest.mark.parametrize("settings", _POOLER)
def test_row_43_settings_of_pgbouncer(instance: Instance, service: str, settings: str) -> None:
    answer = _send(instance, "PUT", f"/dbaas-postgres/{service}", f'{{"pgbouncer-settings": {settings}}}')
    _refused(answer, "pgbouncer-settings", "The request body ")
