"""Every field of create and update: sent by the official SDK, read back equal, seen in the servers that run.

The fields are the contract's at run time: one that a newer contract brings fails here until it is handled or refused.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
import pytest
from exoscale.api.exceptions import ExoscaleAPIAuthException, ExoscaleAPIClientException

from pgherd import unprivileged
from pgherd.drivers import os_users, postgres
from pgherd.drivers.postgres import Cluster
from tests.contract.answers import document
from tests.plugins.instance import Instance

PATH = "/dbaas-postgres/{name}"


def fields_of(method: str) -> set[str]:
    """The fields of create (post) or update (put), from the OpenAPI document."""
    body = document()["paths"][PATH][method]["requestBody"]["content"]["application/json"]["schema"]
    return set(body["properties"])


class Running:
    """A service, as its API shows it and as its servers know it."""

    def __init__(self, instance: Instance, name: str, sent: dict[str, Any]) -> None:
        self.instance, self.name = instance, name
        self.sent = sent
        self.shown: dict[str, Any] = instance.client().get_dbaas_service_pg(name=name)

    @cached_property
    def parameters(self) -> dict[str, str]:
        """PostgreSQL's parameters as its admin sees them."""
        return dict(self.instance.sql(self.name, "select name, current_setting(name) from pg_settings"))

    @cached_property
    def cluster(self) -> Cluster:
        """Its directories on this machine."""
        spec = self.instance.spec(self.name)
        directory = self.instance.home / "nodes" / spec["node_id"]
        account = os_users.find(json.loads((directory / "slot.json").read_text())["user"])
        return Cluster(postgres.programs("")[spec["version"]], directory, account, spec["port"])

    def platform(self, query: str) -> list[str]:
        """Lines of a query that only the platform may make."""
        return postgres.psql(self.cluster, query).splitlines()

    def pgbouncer(self, command: str) -> dict[str, str]:
        """First and second column of what PgBouncer's console shows."""
        cluster = self.cluster
        argv = [
            f"{cluster.program.bin}/psql",
            "-XqAtw",
            "-F",
            "\t",
            "-h",
            str(cluster.run),
            "-p",
            str(cluster.port + 1),
        ]
        answer = unprivileged.run(
            cluster.account, [*argv, "-U", "pgbouncer", "-d", "pgbouncer", "-c", command], env={"PGSSLMODE": "disable"}
        )
        assert answer.code == 0, answer.err
        return dict(line.split("\t")[:2] for line in answer.out.decode().splitlines())


Check = Callable[[Running], None]


@dataclass(frozen=True)
class Field:
    """What create and update send for a field; None where the contract has it in the other alone.

    `seen` looks into the servers. `shown` is how it is read back, the value itself if not given.
    """

    create: Any
    update: Any
    seen: Check
    shown: Callable[[Running, Any], None] | None = None


def same(got: Any, wanted: Any) -> bool:
    """Equal in value and in type: in Python 0 == False and 1 == 1.0. The order of keys is free."""
    return json.dumps(got, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def _plan(running: Running) -> None:
    assert running.parameters["max_connections"] == str(running.shown["max-connections"])
    assert running.shown["max-connections"] == {"startup-4": 100, "startup-8": 200}[running.sent["plan"]]


def _version(running: Running) -> None:
    assert running.parameters["server_version"].split(" ")[0] == running.shown["version"]


def _version_shown(running: Running, sent: str) -> None:
    assert running.shown["version"].startswith(f"{sent}.")


def _admin_shown(running: Running, sent: str) -> None:
    assert running.shown["uri-params"]["user"] == sent
    assert [user["username"] for user in running.shown["users"] if user["type"] == "primary"] == [sent]


def _admin(running: Running) -> None:
    flags = "rolsuper, rolcreatedb, rolcreaterole, rolcanlogin"
    query = f"select rolname::text, {flags} from pg_roles where rolname = current_user"
    assert running.instance.sql(running.name, query) == [(running.sent["admin-username"], False, True, True, True)]


def _password_shown(running: Running, sent: str) -> None:
    user = running.shown["uri-params"]["user"]
    client = running.instance.client()
    revealed = client.reveal_dbaas_postgres_user_password(service_name=running.name, username=user)
    assert revealed == {"username": user, "password": sent}


def _password(running: Running) -> None:
    assert running.instance.sql(running.name, "select 1", password=running.sent["admin-password"]) == [(1,)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        running.instance.sql(running.name, "select 1", password="another-one")


def _protection(running: Running) -> None:
    if running.sent["termination-protection"]:
        with pytest.raises(ExoscaleAPIAuthException, match="protected against termination"):
            running.instance.client().delete_dbaas_service(name=running.name)


def _ip_filter(running: Running) -> None:
    """The rules that the running server works with, beside loopback, which the advertised address lets pass."""
    query = "select address || ' ' || netmask from pg_hba_file_rules where auth_method = 'scram-sha-256'"
    rules = {
        ipaddress.ip_network(line.replace(" ", "/") if "." in line else _v6(line)) for line in running.platform(query)
    }
    wanted = {ipaddress.ip_network(entry, strict=False) for entry in running.sent["ip-filter"]}
    assert rules - wanted == {ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")}
    assert wanted <= rules


def _v6(line: str) -> str:
    address, mask = line.split(" ")
    return f"{address}/{int(ipaddress.ip_address(mask)).bit_count()}"


def _work_mem(running: Running) -> None:
    assert running.parameters["work_mem"] == f"{running.sent['work-mem']}MB"


def _shared_buffers(running: Running) -> None:
    """The share of the memory of which effective_cache_size is three quarters, however much that is here."""
    pages = dict(
        running.instance.sql(
            running.name,
            "select name, setting::int from pg_settings where name in ('shared_buffers', 'effective_cache_size')",
        )
    )
    share = 75 * pages["shared_buffers"] / pages["effective_cache_size"]
    assert abs(share - running.sent["shared-buffers-percentage"]) < 1.5


def _in_force(**wanted: str) -> Check:
    def look(running: Running) -> None:
        names = {name.replace("__", "."): value for name, value in wanted.items()}
        assert {name: running.parameters[name] for name in names} == names

    return look


def _pg_settings(running: Running) -> None:
    values = {
        "jit": {False: "off", True: "on"}[running.sent["pg-settings"]["jit"]],
        "log_temp_files": {0: "0", 7: "7kB"}[running.sent["pg-settings"]["log_temp_files"]],
        "TimeZone": "Europe/Zurich",
        "autovacuum_naptime": f"{running.sent['pg-settings']['autovacuum']['autovacuum_naptime']}s",
        "bgwriter_lru_multiplier": "3.5",
        "pg_stat_statements.track": "all",
        "max_slot_wal_keep_size": "-1",
    }
    assert {name: running.parameters[name] for name in values} == values


def _pgbouncer(running: Running) -> None:
    sent = running.sent["pgbouncer-settings"]
    config = running.pgbouncer("SHOW CONFIG")
    assert config["server_lifetime"] == str(sent["server_lifetime"])
    assert config["ignore_startup_parameters"].split(",")[-1] == sent["ignore_startup_parameters"][-1]
    assert running.instance.sql(running.name, "select 1", port=str(running.cluster.port + 1)) == [(1,)], (
        "through a pool"
    )


def _nothing(running: Running) -> None:
    """It has no effect inside a server yet; what is due because of it is tested where that is made."""


def _slot_shown(running: Running, sent: dict[str, Any]) -> None:
    assert running.shown["maintenance"] == {**sent, "updates": running.shown["maintenance"]["updates"]}


def _not_shown(running: Running, sent: str) -> None:
    """The contract has no such field in its answers."""
    assert "variant" not in running.shown


def _timescale(running: Running) -> None:
    assert "timescaledb" in running.platform("SHOW shared_preload_libraries")[0].split(",")
    workers = str(running.sent["timescaledb-settings"]["max_background_workers"])
    assert running.parameters["timescaledb.max_background_workers"] == workers
    assert running.instance.sql(running.name, "select extname::text from pg_extension where extname = 'timescaledb'")
    running.instance.sql(running.name, "create table if not exists metric (at timestamptz not null)")
    hypertable = "select * from create_hypertable('metric', 'at', if_not_exists => true)"
    assert running.instance.sql(running.name, hypertable)


def _audit(running: Running) -> None:
    """PostgreSQL has each value that its pgaudit knows."""
    sent = {name: value for name, value in running.sent["pgaudit-settings"].items() if name != "feature_enabled"}
    shown = {name: running.parameters.get(f"pgaudit.{name}") for name in sent}
    wanted = {name: ("off", "on")[value] if isinstance(value, bool) else str(value) for name, value in sent.items()}
    wanted["log"] = ",".join(sent["log"])
    assert {name for name, value in shown.items() if value is None} <= {
        "log_max_string_length",
        "log_nested_statements",
    }
    assert {name: value for name, value in shown.items() if value is not None} == {
        name: value for name, value in wanted.items() if shown[name] is not None
    }
    assert running.instance.sql(running.name, "select 1 from pg_extension where extname = 'pgaudit'") == [(1,)]


PG_SETTINGS = {
    "jit": False, "log_temp_files": 0, "timezone": "Europe/Zurich", "pg_stat_statements.track": "all",
    "autovacuum": {"autovacuum_naptime": 30}, "bg-writer": {"bgwriter_lru_multiplier": 3.5},
    "wal": {"max_slot_wal_keep_size": -1},
}  # fmt: skip

AUDIT = {
    "feature_enabled": True, "log": ["ddl", "role", "misc_set"], "log_catalog": False, "log_client": True,
    "log_level": "notice", "log_max_string_length": -1, "log_nested_statements": True, "log_parameter": True,
    "log_parameter_max_size": 512, "log_relation": True, "log_rows": True, "log_statement": False,
    "log_statement_once": True, "role": "auditor",
}  # fmt: skip

FIELDS: dict[str, Field] = {
    "plan": Field("startup-4", "startup-8", _plan),
    "version": Field("18", "18", _version, _version_shown),
    "admin-username": Field("Chief.of-all_1", None, _admin, _admin_shown),
    "admin-password": Field("correct-horse_battery", None, _password, _password_shown),
    "termination-protection": Field(True, False, _protection),
    "ip-filter": Field(["10.20.0.0/16", "192.0.2.7", "2001:db8::/32"], ["198.51.100.3/24"], _ip_filter),
    "maintenance": Field(
        {"dow": "never", "time": "03:04:05"}, {"dow": "sunday", "time": "23:59:59"}, _nothing, _slot_shown
    ),
    "backup-schedule": Field(
        {"backup-hour": 0, "backup-minute": 59}, {"backup-hour": 23, "backup-minute": 0}, _nothing
    ),
    "work-mem": Field(7, 11, _work_mem),
    "shared-buffers-percentage": Field(33, 40, _shared_buffers),
    "pg-settings": Field(
        PG_SETTINGS,
        PG_SETTINGS | {"jit": True, "log_temp_files": 7, "autovacuum": {"autovacuum_naptime": 31}},
        _pg_settings,
    ),
    "pgbouncer-settings": Field(
        {"server_lifetime": 120, "ignore_startup_parameters": ["search_path"], "autodb_pool_size": 2},
        {"server_lifetime": 240, "ignore_startup_parameters": ["extra_float_digits"], "autodb_pool_size": 3},
        _pgbouncer,
    ),
    "synchronous-replication": Field("off", "off", _in_force(synchronous_standby_names="")),
    "variant": Field("timescale", "timescale", _timescale, _not_shown),
    "timescaledb-settings": Field({"max_background_workers": 9}, {"max_background_workers": 11}, _timescale),
    "pglookout-settings": Field(
        {"max_failover_replication_time_lag": 30}, {"max_failover_replication_time_lag": 90}, _nothing
    ),
    "pgaudit-settings": Field(AUDIT, AUDIT | {"log": ["all"], "log_rows": False, "log_level": "warning"}, _audit),
}

#: Fields that are refused as yet, with a value that the contract allows, and the issue that they come with.
REFUSED: dict[str, tuple[Any, str]] = {
    "integrations": ([{"type": "read_replica", "source-service": "other"}], "read replicas"),
    "migration": ({"host": "db.example.com", "port": 5432}, "migration"),
}

#: Fields whose effect needs another service: tests/e2e/test_forks.py has them.
ELSEWHERE = {"fork-from-service", "recovery-backup-time"}


@pytest.mark.parametrize("method", ["post", "put"])
def test_every_field_of_the_contract_is_here(method: str) -> None:
    assert fields_of(method) <= set(FIELDS) | set(REFUSED) | ELSEWHERE
    assert not set(FIELDS) & set(REFUSED)
    sent = {name for name, field in FIELDS.items() if (field.create if method == "post" else field.update) is not None}
    assert sent <= fields_of(method)


def keywords(body: dict[str, Any]) -> dict[str, Any]:
    """Fields as the SDK's methods take them."""
    return {name.replace("-", "_"): value for name, value in body.items()}


@pytest.fixture(scope="module")
def made(instance: Instance, checked: None) -> Iterator[Running]:
    """A service that was created with every field."""
    sent = {name: field.create for name, field in FIELDS.items() if field.create is not None}
    client, name = instance.client(), "every-field"
    client.wait(client.create_dbaas_service_pg(name=name, **keywords(sent))["id"], max_wait_time=120)
    yield Running(instance, name, sent)
    client.wait(client.update_dbaas_service_pg(name=name, termination_protection=False)["id"])
    client.wait(client.delete_dbaas_service(name=name)["id"])


@pytest.fixture(scope="module")
def updated(made: Running) -> Running:
    """The same after one update of every field."""
    sent = {name: field.update for name, field in FIELDS.items() if field.update is not None}
    client = made.instance.client()
    operation = client.update_dbaas_service_pg(name=made.name, **keywords(sent))
    at_once = Running(made.instance, made.name, sent)
    for name in sent:
        reads_back(at_once, name)
    client.wait(operation["id"], max_wait_time=120)
    return Running(made.instance, made.name, sent)


def reads_back(running: Running, name: str) -> None:
    """The field is shown as it was sent."""
    sent, how = running.sent[name], FIELDS[name].shown
    if how:
        how(running, sent)
    else:
        assert same(running.shown[name], sent), (running.shown[name], sent)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.create is not None])
def test_of_create(made: Running, name: str) -> None:
    reads_back(made, name)
    FIELDS[name].seen(made)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.update is not None])
def test_of_update(updated: Running, name: str) -> None:
    reads_back(updated, name)
    FIELDS[name].seen(updated)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_yet(made: Running, name: str) -> None:
    """With a 4xx that names the field, by create and by update, and without any effect."""
    client, value = made.instance.client(), {name: REFUSED[name][0]}
    calls = {"post": client.create_dbaas_service_pg, "put": client.update_dbaas_service_pg}
    for method, call in calls.items():
        if name in fields_of(method):
            body = value | ({"plan": "hobbyist-2"} if method == "post" else {})
            with pytest.raises(ExoscaleAPIClientException) as caught:
                call(name="no-such-field" if method == "post" else made.name, **keywords(body))
            assert caught.value.response.json()["message"] == f"{name}: is not available yet; leave it out."
