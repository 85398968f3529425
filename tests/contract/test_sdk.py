"""The whole life of a service through the unmodified official SDK."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from exoscale.api.exceptions import ExoscaleAPIAuthException, ExoscaleAPIClientException
from exoscale.api.v2 import Client

from tests.contract.processes import metadata
from tests.plugins.instance import Instance, until


def another_second() -> None:
    """Wait for the next second: what is signed twice within one is one request, and answered as such."""
    now = int(time.time())
    until(lambda: int(time.time()) > now, 2, "the next second")


def refusal(call: Callable[..., Any], status: int = 400, **fields: Any) -> str:
    """The message of the 4xx that the call is answered with."""
    kind = ExoscaleAPIAuthException if status == 403 else ExoscaleAPIClientException
    with pytest.raises(kind) as caught:
        call(**fields)
    assert caught.value.response.status_code == status, caught.value
    message: str = caught.value.response.json()["message"]
    return message


class TestCatalog:
    def test_one_zone_with_our_own_endpoint(self, instance: Instance, client: Client) -> None:
        (zone,) = client.list_zones()["zones"]
        assert zone["name"] == instance.exports["EXOSCALE_ZONE"]
        assert zone["api-endpoint"] == instance.endpoint

    def test_the_type_has_plans_and_versions(self, client: Client) -> None:
        (listed,) = client.list_dbaas_service_types()["dbaas-service-types"]
        pg = client.get_dbaas_service_type(service_type_name="pg")
        assert listed == pg
        assert "15" in pg["available-versions"] and pg["default-version"] in pg["available-versions"]
        sizes = (4, 8, 16, 32, 64, 128, 225)
        wanted = ["hobbyist-2", *(f"{tier}-{size}" for tier in ("startup", "business", "premium") for size in sizes)]
        assert [plan["name"] for plan in pg["plans"]] == wanted
        small = pg["plans"][0]
        assert (small["node-count"], small["node-cpu-count"]) == (1, 2)
        assert (small["node-memory"], small["disk-space"]) == (2 << 30, 8 << 30)
        assert {plan["node-count"] for plan in pg["plans"] if plan["name"].startswith("premium")} == {3}

    def test_other_types_do_not_exist(self, client: Client) -> None:
        assert "pg only" in refusal(client.get_dbaas_service_type, 404, service_type_name="mysql")

    def test_settings_are_schemas_that_clients_can_validate_with(self, client: Client) -> None:
        settings = client.get_dbaas_settings_pg()["settings"]
        assert set(settings) == {"pg", "pgbouncer", "pglookout", "timescaledb"}
        for schema in settings.values():
            assert schema["type"] == "object" and schema["title"] and schema["properties"]
            assert schema["additionalProperties"] is False
        assert settings["pg"]["properties"]["jit"]["type"] == "boolean"
        assert "autovacuum_naptime" in settings["pg"]["properties"]["autovacuum"]["properties"]

    def test_the_ca_certificate_is_pem(self, client: Client) -> None:
        assert client.get_dbaas_ca_certificate()["certificate"].startswith("-----BEGIN CERTIFICATE-----\n")

    def test_no_service_of_this_name(self, client: Client) -> None:
        for call in (client.get_dbaas_service_pg, client.delete_dbaas_service_pg, client.delete_dbaas_service):
            assert refusal(call, 404, name="c-nobody") == "Service does not exist"
        update = client.update_dbaas_service_pg
        assert refusal(update, 404, name="c-nobody", plan="startup-4") == "Service does not exist"
        call = client.reveal_dbaas_postgres_user_password
        assert refusal(call, 404, service_name="c-nobody", username="avnadmin") == "Service does not exist"


class TestDefaults:
    """What a service is when the request names a plan only; Terraform's drift list."""

    def test_the_whole_object(self, instance: Instance, client: Client, service: str) -> None:
        shown = client.get_dbaas_service_pg(name=service)
        expected = {
            "name": service,
            "type": "pg",
            "plan": "hobbyist-2",
            "state": "running",
            "zone": "ch-gva-2",
            "node-count": 1,
            "node-cpu-count": 2,
            "node-memory": 2 << 30,
            "disk-size": 8 << 30,
            "termination-protection": False,
            "ip-filter": [],
            "pg-settings": {},
            "integrations": [],
            "notifications": [],
            "backups": [],
            "connection-pools": [],
            "pgbouncer-settings": {},
            "databases": ["defaultdb"],
            "max-connections": 25,
            "shared-buffers-percentage": 20,
        }
        assert {key: shown[key] for key in expected} == expected
        assert shown["version"].startswith("15.")
        assert shown["maintenance"]["updates"] == []
        assert [(user["username"], user["type"]) for user in shown["users"]] == [("avnadmin", "primary")]
        assert [(node["role"], node["state"]) for node in shown["node-states"]] == [("master", "running")]

    def test_addresses_agree(self, client: Client, service: str) -> None:
        shown = client.get_dbaas_service_pg(name=service)
        params = shown["uri-params"]
        host, port = params["host"], params["port"]
        assert shown["uri"] == f"postgres://avnadmin@{host}:{port}/defaultdb?sslmode=require"
        assert shown["prometheus-uri"] == {"host": host, "port": int(port) + 3}
        assert params == {"dbname": "defaultdb", "host": host, "port": port, "sslmode": "require", "user": "avnadmin"}
        assert shown["connection-info"]["uri"] == [shown["uri"]]
        assert shown["connection-info"]["params"] == [params]
        (component,) = shown["components"]
        assert component == {"component": "pg", "host": host, "port": int(port), "route": "dynamic", "usage": "primary"}

    def test_the_list_shows_the_same(self, client: Client, service: str) -> None:
        shown = client.get_dbaas_service_pg(name=service)
        (listed,) = [row for row in client.list_dbaas_services()["dbaas-services"] if row["name"] == service]
        assert listed == {key: shown[key] for key in listed}

    def test_what_it_shows_is_in_force(self, instance: Instance, client: Client, service: str) -> None:
        shown = client.get_dbaas_service_pg(name=service)
        assert instance.sql(service, "show max_connections") == [(str(shown["max-connections"]),)]
        assert instance.sql(service, "show work_mem") == [(f"{shown['work-mem']}MB",)]
        assert instance.sql(service, "show server_version")[0][0].split()[0] == shown["version"]
        assert instance.sql(service, "select current_user::text") == [("avnadmin",)]

    def test_new_databases_and_users_are_shown(self, instance: Instance, client: Client, service: str) -> None:
        instance.sql(service, 'create role "Grüße" login')
        instance.sql(service, "create database zweite")

        def seen() -> bool:
            shown = client.get_dbaas_service_pg(name=service)
            users = {user["username"]: user["type"] for user in shown["users"]}
            return users.get("Grüße") == "normal" and "zweite" in shown["databases"]

        try:
            until(seen, 30, "the service shows what its admin made")
        finally:
            instance.sql(service, 'drop role "Grüße"')
            instance.sql(service, "drop database zweite")


class TestConnections:
    def test_verify_full_with_the_ca_from_the_api(self, instance: Instance, service: str) -> None:
        assert instance.sql(service, "select ssl from pg_stat_ssl where pid = pg_backend_pid()") == [(True,)]

    def test_another_ca_is_not_trusted(self, instance: Instance, service: str) -> None:
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            instance.sql(service, "select 1", sslrootcert="system")

    def test_wrong_password(self, instance: Instance, service: str) -> None:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            instance.sql(service, "select 1", password="wrong-password")

    def test_no_tls(self, instance: Instance, service: str) -> None:
        with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf|no encryption"):
            instance.sql(service, "select 1", sslmode="disable")

    def test_other_databases_are_closed(self, instance: Instance, service: str) -> None:
        for database in ("postgres", "template1"):
            with pytest.raises(psycopg.OperationalError, match=r"permission denied|not currently accepting|pg_hba"):
                instance.sql(service, "select 1", dbname=database)

    def test_the_platform_cannot_be_reached_from_outside(self, instance: Instance, service: str) -> None:
        with pytest.raises(psycopg.OperationalError, match=r"pg_hba|rejects"):
            instance.sql(service, "select 1", user="postgres", dbname="defaultdb")

    def test_the_admin_is_no_superuser_and_owns_its_database(self, instance: Instance, service: str) -> None:
        flags = "rolsuper, rolcreatedb, rolcreaterole, rolcanlogin"
        assert instance.sql(service, f"select {flags} from pg_roles where rolname = current_user") == [
            (False, True, True, True)
        ]
        owner = "select pg_get_userbyid(datdba)::text from pg_database where datname = 'defaultdb'"
        assert instance.sql(service, owner) == [("avnadmin",)]

    def test_passwords_of_others_are_not_known(self, client: Client, service: str) -> None:
        call = client.reveal_dbaas_postgres_user_password
        assert "User does not exist" in refusal(call, 404, service_name=service, username="postgres")

    def test_the_password_does_not_change(self, client: Client, service: str) -> None:
        shown = [
            client.reveal_dbaas_postgres_user_password(service_name=service, username="avnadmin") for _ in range(2)
        ]
        assert shown[0] == shown[1] and len(shown[0]["password"]) >= 16


class TestCreate:
    def test_get_right_after_post(self, client: Client, names: Callable[[], str]) -> None:
        for _ in range(2):
            name = names()
            operation = client.create_dbaas_service_pg(name=name, plan="hobbyist-2")
            shown = client.get_dbaas_service_pg(name=name)
            assert shown["state"] in ("rebuilding", "running")
            assert operation["reference"]["link"] == f"/v2/dbaas-postgres/{name}"
            assert name in [row["name"] for row in client.list_dbaas_services()["dbaas-services"]]
            client.delete_dbaas_service(name=name)

    def test_get_while_post_is_held(self, client: Client, instance: Instance, name: str) -> None:
        """The answer waits for the end of the operation; the service is there meanwhile."""
        other = instance.client()
        thread = threading.Thread(target=client.create_dbaas_service_pg, kwargs={"name": name, "plan": "hobbyist-2"})
        thread.start()

        def there() -> Any:
            try:
                return other.get_dbaas_service_pg(name=name)
            except ExoscaleAPIClientException:
                return None

        shown = until(there, 5, "the service is there")
        assert shown["state"] in ("rebuilding", "running")
        thread.join()

    def test_a_quick_create_is_a_success_at_once(self, client: Client, name: str) -> None:
        operation = client.create_dbaas_service_pg(name=name, plan="hobbyist-2")
        done = client.wait(operation["id"], max_wait_time=60)
        assert done["state"] == "success"
        assert client.get_dbaas_service_pg(name=name)["state"] == "running"

    def test_changed_before_it_runs(self, instance: Instance, client: Client, name: str) -> None:
        """Terraform may change a service whose create has only been accepted."""
        answers: list[dict[str, Any]] = []
        create = {"name": name, "plan": "hobbyist-2", "work_mem": 2, "pg_settings": {"jit": True}}
        thread = threading.Thread(target=lambda: answers.append(client.create_dbaas_service_pg(**create)))
        thread.start()
        other = instance.client()

        def taken() -> Any:
            try:
                return other.update_dbaas_service_pg(
                    name=name, work_mem=9, pg_settings={"max_prepared_transactions": 3}
                )
            except ExoscaleAPIClientException:
                return None

        answers.append(until(taken, 5, "there is something to change"))
        shown = other.get_dbaas_service_pg(name=name)
        assert (shown["work-mem"], shown["pg-settings"]) == (9, {"jit": True, "max_prepared_transactions": 3})
        thread.join()
        assert {instance.finished(answer)["state"] for answer in answers} == {"success"}
        assert instance.sql(name, "show work_mem") == [("9MB",)]
        assert instance.sql(name, "show max_prepared_transactions") == [("3",)]

    @pytest.mark.parametrize("length", [1, 63])
    def test_the_shortest_and_the_longest_name(self, instance: Instance, client: Client, length: int) -> None:
        name = uuid.uuid4().hex.translate(str.maketrans("0123456789", "ghijklmnop")) * 2
        name = name[:length]
        instance.create(name)
        assert instance.sql(name, "select 1") == [(1,)]
        client.delete_dbaas_service(name=name)

    def test_the_name_is_taken(self, client: Client, service: str) -> None:
        message = refusal(client.create_dbaas_service_pg, 409, name=service, plan="startup-8")
        assert message == "Service name is already taken"


def _sorted(value: Any) -> Any:
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


GOOD = {"plan": "hobbyist-2"}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown plan": ({"plan": "startup-5"}, r"^plan: must be one of hobbyist-2, startup-4, .*startup-225$"),
    "no plan": ({"version": "15"}, r"^plan: is required"),
    "two nodes": ({"plan": "business-4"}, r"^plan: business-4 has 2 nodes, which is not available yet; allowed: hob"),
    "three nodes": ({"plan": "premium-225"}, r"^plan: premium-225 has 3 nodes"),
    "unknown version": (GOOD | {"version": "12"}, r"^version: must be one of 13, 14, 15, 16, 17, 18$"),
    "version no host has": (GOOD | {"version": "13"}, r"^version: 13 is not installed on any host; available: .*15"),
    "full version": (GOOD | {"version": "15.4"}, r"^version: must be one of"),
    "recovery": (GOOD | {"recovery_backup_time": "2026-01-01"}, r"^recovery-backup-time: must be an ISO 8601 time"),
    "migration": (
        GOOD | {"migration": {"host": "db.example.com", "port": 5432}}, r"^migration: is not available yet"
    ),
    "integrations": (
        GOOD | {"integrations": [{"type": "read_replica", "source-service": "other"}]}, r"^integrations: is not avail"
    ),
    "pooler's setting": (
        GOOD | {"pgbouncer_settings": {"min_pool_size": -1}}, r"^pgbouncer-settings\.min_pool_size: .* from 0 to 10000$"
    ),
    "synchronous": (GOOD | {"synchronous_replication": "quorum"}, r"^synchronous-replication: must be off on plan h"),
    "no TimescaleDB": (GOOD | {"version": "15", "variant": "timescale"}, r"^variant: timescaledb for PostgreSQL 15 is"),
    "settings of TimescaleDB alone": (
        GOOD | {"timescaledb_settings": {"max_background_workers": 4}},
        r"^timescaledb-settings: only a service of variant timescale has them$",
    ),
    "what no pgaudit can": (
        GOOD | {"pgaudit_settings": {"feature_enabled": True, "log_nested_statements": False}},
        r"^pgaudit-settings\.log_nested_statements: must be true; pgaudit for PostgreSQL 15 has no other here$",
    ),
    "a role for pg_partman": (
        GOOD | {"pg_settings": {"pg_partman_bgw.role": "postgres"}}, r"^pg-settings\.pg_partman_bgw\.role: must be a"
    ),
    "work-mem 0": (GOOD | {"work_mem": 0}, r"^work-mem: must be an integer from 1 to 1024$"),
    "work-mem 1025": (GOOD | {"work_mem": 1025}, r"^work-mem: must be an integer from 1 to 1024$"),
    "work-mem as text": (GOOD | {"work_mem": "8"}, r"^work-mem: must be an integer"),
    "work-mem as float": (GOOD | {"work_mem": 8.0}, r"^work-mem: must be an integer"),
    "work-mem true": (GOOD | {"work_mem": True}, r"^work-mem: must be an integer"),
    "shared buffers 19": (GOOD | {"shared_buffers_percentage": 19}, r"^shared-buffers-percentage: .* from 20 to 60$"),
    "shared buffers 61": (GOOD | {"shared_buffers_percentage": 61}, r"^shared-buffers-percentage: .* from 20 to 60$"),
    "admin postgres": (GOOD | {"admin_username": "postgres"}, r"^admin-username: postgres is reserved"),
    "admin pg_": (GOOD | {"admin_username": "pg_monitor"}, r"^admin-username: pg_monitor is reserved"),
    "admin public": (GOOD | {"admin_username": "PUBLIC"}, r"^admin-username: PUBLIC is reserved"),
    "admin with a quote": (GOOD | {"admin_username": "a'b"}, r"^admin-username: must be a string"),
    "admin of 64": (GOOD | {"admin_username": "a" * 64}, r"^admin-username: .*63"),
    "short password": (GOOD | {"admin_password": "s3cret"}, r"^admin-password: must be a string of 8 to 256"),
    "password with a space": (GOOD | {"admin_password": "not allowed"}, r"^admin-password: must be a string"),
    "no network": (GOOD | {"ip_filter": ["10.0.0.0/8", "10.0.0.0/33"]}, r"^ip-filter\[1\]: must be a network such as"),
    "a host name": (GOOD | {"ip_filter": ["example.com"]}, r"^ip-filter\[0\]: must be a network"),
    "injected rule": (GOOD | {"ip_filter": ["::/0 trust\nhost all all all"]}, r"^ip-filter\[0\]: must be a network"),
    "filter as text": (GOOD | {"ip_filter": "0.0.0.0/0"}, r"^ip-filter: must be a list"),
    "filter of objects": (GOOD | {"ip_filter": [{"network": "10.0.0.0/8"}]}, r"^ip-filter\[0\]: must be a string"),
    "wrong day": (GOOD | {"maintenance": {"dow": "mon", "time": "01:00:00"}}, r"^maintenance\.dow: must be one of"),
    "wrong time": (GOOD | {"maintenance": {"dow": "monday", "time": "24:00:00"}}, r"^maintenance\.time: must be"),
    "time alone": (GOOD | {"maintenance": {"time": "01:00:00"}}, r"^maintenance\.dow: is required"),
    "hour 24": (GOOD | {"backup_schedule": {"backup-hour": 24, "backup-minute": 0}}, r"^backup-schedule\.backup-hour:"),
    "unknown setting": (GOOD | {"pg_settings": {"fsync": "off"}}, r"^pg-settings\.fsync: is not known"),
    "flat key": (GOOD | {"pg_settings": {"autovacuum_naptime": 1}}, r"^pg-settings\.autovacuum_naptime: is not known"),
    "setting's type": (GOOD | {"pg_settings": {"jit": "on"}}, r"^pg-settings\.jit: must be true or false$"),
    "setting's range": (
        GOOD | {"pg_settings": {"wal": {"max_wal_senders": 19}}},
        r"^pg-settings\.wal\.max_wal_senders: .* from 20 to 256$",
    ),
    "no such time zone": (GOOD | {"pg_settings": {"timezone": "Mars/Base"}}, r"^pg-settings\.timezone: must be a time"),
    "newer version's": (GOOD | {"pg_settings": {"io_method": "sync"}}, r"^pg-settings\.io_method: needs PostgreSQL 18"),
    "too many locks": (
        GOOD | {"pg_settings": {"max_locks_per_transaction": 6400, "max_prepared_transactions": 10000}},
        r"^pg-settings: max_locks_per_transaction",
    ),
    "two at once": (GOOD | {"work_mem": 0, "ip_filter": 1}, r"(?=.*work-mem: must)(?=.*ip-filter: must)"),
}  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(("fields", "text"), REFUSED.values(), ids=REFUSED.keys())
    def test_of_create(self, client: Client, name: str, fields: dict[str, Any], text: str) -> None:
        message = refusal(client.create_dbaas_service_pg, name=name, **fields)
        assert re.search(text, message), message
        assert refusal(client.get_dbaas_service_pg, 404, name=name) == "Service does not exist"

    def test_of_a_fork_of_nothing(self, client: Client, name: str) -> None:
        message = refusal(client.create_dbaas_service_pg, 404, name=name, **GOOD, fork_from_service="other")
        assert message == "Service does not exist"

    @pytest.mark.parametrize(
        "wrong", ["Upper", "1digit", "-dash", "dash-", "under_score", "dot.dot", "ümlaut", "a b", "a" * 64, "a%2Fb"]
    )
    def test_of_names(self, client: Client, wrong: str) -> None:
        message = refusal(client.create_dbaas_service_pg, name=wrong, **GOOD)
        assert message.startswith("name: ") and "63" in message

    def test_a_secret_is_not_repeated(self, client: Client, name: str) -> None:
        message = refusal(client.create_dbaas_service_pg, name=name, **GOOD, admin_password="sec ret sec ret")
        assert "sec ret" not in message

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"plan": "startup-5"}, "plan: must be one of hobbyist-2"),
            ({"plan": "premium-4"}, "plan: premium-4 has 3 nodes"),
            ({"version": "16"}, "version: the service runs PostgreSQL 15"),
            ({"work_mem": 1025}, "work-mem: must be an integer from 1 to 1024"),
            ({"ip_filter": ["10.0.0.0/99"]}, "ip-filter[0]: must be a network"),
            (
                {"pg_settings": {"max_locks_per_transaction": 6400, "max_prepared_transactions": 9999}},
                "pg-settings: max",
            ),
            ({"pg_settings": {"nonsense": 1}}, "pg-settings.nonsense: is not known"),
            ({"migration": {"host": "db.example.com", "port": 5432}}, "migration: is not available yet"),
            ({"maintenance": {"dow": "monday", "time": "1:00:000"}}, "maintenance.time: must be"),
        ],
    )
    def test_of_update(self, client: Client, service: str, fields: dict[str, Any], text: str) -> None:
        before = client.get_dbaas_service_pg(name=service)
        assert refusal(client.update_dbaas_service_pg, name=service, **fields).startswith(text)
        assert client.get_dbaas_service_pg(name=service) == before


@pytest.fixture(scope="module")
def changed(instance: Instance, checked: None) -> Iterator[str]:
    """A service that the tests of TestUpdate change, one after the other."""
    name = instance.create(
        work_mem=3,
        ip_filter=["10.0.0.0/8"],
        maintenance={"dow": "monday", "time": "01:02:03"},
        backup_schedule={"backup-hour": 4, "backup-minute": 5},
        pg_settings={"jit": False, "log_temp_files": 5, "autovacuum": {"autovacuum_naptime": 30}},
    )
    yield name
    instance.client().delete_dbaas_service(name=name)


class TestUpdate:
    @staticmethod
    def _update(instance: Instance, name: str, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the service shows right after the answer to the update, and after its end."""
        client = instance.client()
        operation = client.update_dbaas_service_pg(name=name, **fields)
        at_once = client.get_dbaas_service_pg(name=name)
        done = instance.finished(operation)
        assert done["state"] == "success", done
        return at_once, client.get_dbaas_service_pg(name=name)

    def test_what_is_not_sent_stays(self, instance: Instance, changed: str) -> None:
        before = instance.client().get_dbaas_service_pg(name=changed)
        at_once, after = self._update(instance, changed, work_mem=5)
        assert at_once["work-mem"] == after["work-mem"] == 5
        kept = set(before) - {"work-mem", "updated-at", "state", "node-states"}
        assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
        assert instance.sql(changed, "show work_mem") == [("5MB",)]

    def test_only_a_change_of_the_service_s_own_configuration_moves_its_time(
        self, instance: Instance, changed: str
    ) -> None:
        client = instance.client()
        moment = f"select updated_at from service where name = '{changed}' and deleted_at is null"
        before = metadata(instance, moment)
        known = client.get_dbaas_service_pg(name=changed)
        own = {"service_name": changed}
        for operation in (
            client.update_dbaas_service_pg(name=changed),
            client.update_dbaas_service_pg(name=changed, work_mem=known["work-mem"], pg_settings={}),
            client.create_dbaas_postgres_user(**own, username="timeless"),
            client.create_dbaas_pg_database(**own, database_name="timeless"),
            client.create_dbaas_pg_connection_pool(**own, name="timeless", database_name="defaultdb", size=1),
            client.delete_dbaas_pg_connection_pool(**own, connection_pool_name="timeless"),
            client.delete_dbaas_pg_database(**own, database_name="timeless"),
            client.delete_dbaas_postgres_user(**own, username="timeless"),
            client.start_dbaas_pg_maintenance(name=changed),
        ):
            assert instance.finished(operation)["state"] == "success", operation
            assert metadata(instance, moment) == before, operation
        self._update(instance, changed, ip_filter=[*known["ip-filter"], "192.0.2.77/32"])
        assert metadata(instance, moment) > before
        self._update(instance, changed, ip_filter=known["ip-filter"])

    def test_sent_keys_merge_and_keep_their_types(self, instance: Instance, changed: str) -> None:
        sent_now = {"log_temp_files": 0, "autovacuum": {"autovacuum_vacuum_scale_factor": 0.5}, "bg-writer": {}}
        at_once, after = self._update(instance, changed, pg_settings=sent_now)
        wanted = {
            "autovacuum": {"autovacuum_naptime": 30, "autovacuum_vacuum_scale_factor": 0.5},
            "bg-writer": {},
            "jit": False,
            "log_temp_files": 0,
        }
        for shown in (at_once, after):
            assert repr(_sorted(shown["pg-settings"])) == repr(_sorted(wanted))
        assert instance.sql(changed, "show log_temp_files") == [("0",)]
        assert instance.sql(changed, "show jit") == [("off",)]
        assert instance.sql(changed, "show autovacuum_naptime") == [("30s",)]
        assert instance.sql(changed, "show autovacuum_vacuum_scale_factor") == [("0.5",)]

    def test_part_of_a_schedule(self, instance: Instance, changed: str) -> None:
        at_once, after = self._update(instance, changed, backup_schedule={"backup-minute": 0})
        for shown in (at_once, after):
            assert shown["backup-schedule"] == {"backup-hour": 4, "backup-minute": 0}

    def test_slots(self, instance: Instance, changed: str) -> None:
        slot = {"dow": "sunday", "time": "23:59:59"}
        at_once, after = self._update(instance, changed, maintenance=slot)
        assert at_once["maintenance"] == after["maintenance"] == {**slot, "updates": []}

    def test_an_empty_filter_clears(self, instance: Instance, changed: str) -> None:
        """The default address is a loopback one, so local clients pass with any filter."""
        at_once, after = self._update(instance, changed, ip_filter=[])
        assert at_once["ip-filter"] == after["ip-filter"] == []
        assert instance.sql(changed, "select 1") == [(1,)]

    def test_a_parameter_that_needs_a_restart(self, instance: Instance, changed: str) -> None:
        settings = {"max_prepared_transactions": 7}
        _, after = self._update(instance, changed, pg_settings=settings, shared_buffers_percentage=40)
        assert after["state"] == "running"
        assert after["pg-settings"]["max_prepared_transactions"] == 7
        assert instance.sql(changed, "show max_prepared_transactions") == [("7",)]
        assert instance.sql(changed, "select count(*) from pg_settings where pending_restart") == [(0,)]

    def test_a_larger_plan_and_back(self, instance: Instance, changed: str) -> None:
        for plan, memory, connections in (("startup-4", 4 << 30, 100), ("hobbyist-2", 2 << 30, 25)):
            at_once, after = self._update(instance, changed, plan=plan)
            assert at_once["plan"] == after["plan"] == plan
            assert at_once["node-memory"] == after["node-memory"] == memory
            assert after["max-connections"] == connections
            assert instance.sql(changed, "show max_connections") == [(str(connections),)]

    def test_the_version_it_has_already(self, instance: Instance, changed: str) -> None:
        _, after = self._update(instance, changed, version="15", termination_protection=False)
        assert after["version"].startswith("15.")

    def test_a_key_goes_back_to_its_default(self, instance: Instance, changed: str) -> None:
        """`password_encryption` is the contract's one nullable setting."""
        _, after = self._update(instance, changed, pg_settings={"password_encryption": "md5"})
        assert after["pg-settings"]["password_encryption"] == "md5"
        _, after = self._update(instance, changed, pg_settings={"password_encryption": None})
        assert after["pg-settings"].get("password_encryption") is None
        assert instance.sql(changed, "show password_encryption") == [("scram-sha-256",)]

    def test_updates_at_once_all_count(self, instance: Instance, changed: str) -> None:
        """Terraform sends several changes side by side; they are put in order, not refused."""
        changes: list[dict[str, Any]] = [
            {"work_mem": 9},
            {"ip_filter": ["192.0.2.0/24"]},
            {"pg_settings": {"deadlock_timeout": 2000}},
            {"pg_settings": {"jit": True}},
        ]
        answers: list[dict[str, Any]] = []

        def send(fields: dict[str, Any]) -> None:
            answers.append(instance.client().update_dbaas_service_pg(name=changed, **fields))

        threads = [threading.Thread(target=send, args=(fields,)) for fields in changes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == len({answer["id"] for answer in answers}) == len(changes)
        assert {instance.finished(answer)["state"] for answer in answers} == {"success"}
        after = instance.client().get_dbaas_service_pg(name=changed)
        assert (after["work-mem"], after["ip-filter"]) == (9, ["192.0.2.0/24"])
        assert (after["pg-settings"]["deadlock_timeout"], after["pg-settings"]["jit"]) == (2000, True)
        assert instance.sql(changed, "show work_mem") == [("9MB",)]
        assert instance.sql(changed, "show deadlock_timeout") == [("2s",)]


class TestDelete:
    def test_gone_at_once_and_the_name_is_free(self, instance: Instance, client: Client, name: str) -> None:
        instance.create(name)
        instance.sql(name, "create table t as select 1")
        old_ports = client.get_dbaas_service_pg(name=name)["uri-params"]["port"]
        deleted = client.delete_dbaas_service(name=name)
        assert refusal(client.get_dbaas_service_pg, 404, name=name) == "Service does not exist"
        call = client.reveal_dbaas_postgres_user_password
        assert refusal(call, 404, service_name=name, username="avnadmin") == "Service does not exist"
        assert name not in [row["name"] for row in client.list_dbaas_services()["dbaas-services"]]
        another_second()
        instance.create(name)
        assert client.get_dbaas_service_pg(name=name)["uri-params"]["port"] != old_ports
        assert instance.sql(name, "select to_regclass('t')") == [(None,)]
        assert instance.finished(deleted)["state"] == "success"

    def test_by_the_type_s_own_path(self, instance: Instance, client: Client, name: str) -> None:
        instance.create(name)
        done = instance.finished(client.delete_dbaas_service_pg(name=name))
        assert done["state"] == "success"
        assert refusal(client.get_dbaas_service_pg, 404, name=name) == "Service does not exist"

    def test_a_protected_service(self, instance: Instance, client: Client, name: str) -> None:
        client.create_dbaas_service_pg(name=name, plan="hobbyist-2", termination_protection=True)
        assert client.get_dbaas_service_pg(name=name)["termination-protection"] is True
        words = "Service is protected against termination and shutdown. Remove termination protection first."
        assert refusal(client.delete_dbaas_service, 403, name=name) == words
        assert refusal(client.delete_dbaas_service_pg, 403, name=name) == words
        client.update_dbaas_service_pg(name=name, termination_protection=False)
        assert instance.finished(client.delete_dbaas_service(name=name))["state"] == "success"

    def test_during_create(self, instance: Instance, client: Client, name: str) -> None:
        """The create ends as interrupted, and nothing is left."""
        before = set(instance.node_directories())
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(
            target=lambda: answers.append(client.create_dbaas_service_pg(name=name, plan="hobbyist-2"))
        )
        thread.start()
        other = instance.client()

        def deleted() -> Any:
            try:
                return other.delete_dbaas_service(name=name)
            except ExoscaleAPIClientException:
                return None

        operation = until(deleted, 5, "there is something to delete")
        thread.join()
        assert answers[0]["state"] in ("pending", "success"), "a failure is first answered as pending"
        created = client.get_operation(id=answers[0]["id"])
        assert created["state"] == "success" or (created["state"], created["reason"]) == ("failure", "interrupted")
        assert instance.finished(operation)["state"] == "success"
        assert set(instance.node_directories()) <= before
