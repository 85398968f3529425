"""Users, databases and pools through the official SDK: the effect, what GET shows, and every refusal."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import requests
from exoscale.api.v2 import Client

from tests.contract.conftest import Organization
from tests.contract.test_sdk import another_second, refusal
from tests.plugins.instance import Instance, until


@pytest.fixture(scope="module")
def service(instance: Instance, checked: None) -> Iterator[str]:
    """A service whose users, databases and pools the tests of this module make and delete."""
    name = instance.create()
    yield name
    instance.client().delete_dbaas_service(name=name)


class Access:
    """Calls about one service, each to its end."""

    def __init__(self, instance: Instance, service: str) -> None:
        self.instance, self.service, self.client = instance, service, instance.client()

    def __call__(self, operation: str, **fields: Any) -> None:
        """Carry an operation out; it succeeds."""
        another_second()
        call = getattr(self.client, operation)
        done = self.instance.finished(call(service_name=self.service, **fields))
        assert done["state"] == "success", (operation, fields, done)

    def refused(self, operation: str, status: int = 409, **fields: Any) -> str:
        """The message of the refusal."""
        return refusal(getattr(self.client, operation), status, service_name=self.service, **fields)

    def escaped(self, method: str, *path: str, body: Any = None) -> requests.Response:
        """A call whose path the SDK would leave as it is, with a `#` or a `;` in it."""
        where = "/".join(_escaped(part) for part in path)
        return self.instance.call(method, f"/v2/dbaas-postgres/{self.service}/{where}", body)

    def done(self, answer: requests.Response) -> None:
        """The operation in the answer succeeds."""
        assert answer.status_code == 200, answer.text
        assert self.instance.finished(answer.json())["state"] == "success"

    def get(self) -> dict[str, Any]:
        return dict(self.client.get_dbaas_service_pg(name=self.service))

    def users(self) -> dict[str, Any]:
        return {user["username"]: user for user in self.get()["users"]}

    def pools(self) -> dict[str, Any]:
        return {pool["name"]: pool for pool in self.get()["connection-pools"]}

    def password(self, user: str) -> str:
        answer = self.client.reveal_dbaas_postgres_user_password(service_name=self.service, username=user)
        return str(answer["password"])

    def login(self, user: str, password: str, **overrides: str) -> tuple[Any, ...]:
        """Who one is after logging in. Raises OperationalError."""
        (row,) = self.instance.sql(
            self.service,
            "select current_user::text, current_database()::text",
            user=user,
            password=password,
            **overrides,
        )
        return row


@pytest.fixture
def access(instance: Instance, service: str) -> Access:
    return Access(instance, service)


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """Names that nobody had before."""
    return lambda kind: f"{kind}-{uuid.uuid4().hex[:8]}"


class TestUsers:
    def test_a_life(self, access: Access, fresh: Callable[[str], str]) -> None:
        name = fresh("u")
        access("create_dbaas_postgres_user", username=name)
        assert access.users()[name] == {"type": "normal", "username": name, "allow-replication": False}
        first = access.password(name)
        assert access.login(name, first) == (name, "defaultdb")
        access("reset_dbaas_postgres_user_password", username=name)
        second = access.password(name)
        assert second != first
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            access.login(name, first)
        access("reset_dbaas_postgres_user_password", username=name, password="of-my_own-choice")
        assert access.password(name) == "of-my_own-choice"
        assert access.login(name, "of-my_own-choice") == (name, "defaultdb")
        access("delete_dbaas_postgres_user", username=name)
        assert name not in access.users()
        another_second()
        for call in ("delete_dbaas_postgres_user", "reset_dbaas_postgres_user_password"):
            assert access.refused(call, 404, username=name) == f"User {name} does not exist"
        assert access.refused("reveal_dbaas_postgres_user_password", 404, username=name) == "User does not exist"

    def test_of_sql(self, instance: Instance, access: Access) -> None:
        """A user made in SQL is shown, its password unknown until it is reset; a dropped one vanishes."""
        odd = "odd \"name' %\\;#é"
        quoted = '"' + odd.replace('"', '""') + '"'
        instance.sql(access.service, f"create role {quoted} login password 'set-in-sql'")
        until(lambda: odd in access.users(), 20, "the user is observed")
        reveal = ("GET", "user", odd, "password", "reveal")
        text = access.escaped(*reveal).json()["message"]
        assert "not known here" in text and "Reset it" in text
        access.done(access.escaped("PUT", "user", odd, "password", "reset", body={}))
        assert access.login(odd, access.escaped(*reveal).json()["password"])[0] == odd
        wish = {"name": "for-odd", "database-name": "defaultdb", "size": 1, "username": odd}
        refused = access.escaped("POST", "connection-pool", body=wish)
        assert (refused.status_code, "username" in refused.text, "double quote" in refused.text) == (400, True, True)
        instance.sql(access.service, f"alter role {quoted} password 'again-in-sql'")
        until(lambda: access.escaped(*reveal).status_code == 404, 20, "the change is observed")
        another_second()
        access.done(access.escaped("DELETE", "user", odd))
        assert odd not in access.users()

    def test_the_admin(self, instance: Instance, access: Access) -> None:
        access("reset_dbaas_postgres_user_password", username="avnadmin", password="another-for-the-admin")
        assert access.password("avnadmin") == "another-for-the-admin"
        assert instance.sql(access.service, "select 1") == [(1,)]
        text = access.refused("delete_dbaas_postgres_user", username="avnadmin")
        assert text == "User avnadmin is the service's admin and cannot be deleted"

    def test_what_it_owns_passes_to_the_admin(
        self, instance: Instance, access: Access, fresh: Callable[[str], str]
    ) -> None:
        name = fresh("u")
        access("create_dbaas_postgres_user", username=name)
        instance.sql(access.service, f'create schema "{name}"; grant all on schema "{name}" to "{name}"')
        password = access.password(name)
        instance.sql(access.service, f'create table "{name}".kept as select 42 as a', user=name, password=password)
        access("delete_dbaas_postgres_user", username=name)
        assert instance.sql(access.service, f'select a from "{name}".kept') == [(42,)]
        instance.sql(access.service, f'drop schema "{name}" cascade')

    def test_replication(self, access: Access, fresh: Callable[[str], str]) -> None:
        name = fresh("u")
        access("create_dbaas_postgres_user", username=name, allow_replication=True)
        assert access.users()[name]["allow-replication"] is True
        call = access.client.update_dbaas_postgres_allow_replication
        for wanted in (False, True):
            answer = call(service_name=access.service, username=name, allow_replication=wanted)
            assert {"username": name, "allow-replication": wanted} in answer["users"]
            assert access.users()[name]["allow-replication"] is wanted
        assert access.refused(
            "update_dbaas_postgres_allow_replication", 404, username="nobody-here", allow_replication=True
        )
        access("delete_dbaas_postgres_user", username=name)

    def test_there_already(self, access: Access, fresh: Callable[[str], str]) -> None:
        name = fresh("u")
        access("create_dbaas_postgres_user", username=name)
        another_second()
        assert access.refused("create_dbaas_postgres_user", username=name) == f"User {name} already exists"
        assert access.refused("create_dbaas_postgres_user", username="avnadmin") == "User avnadmin already exists"
        access("delete_dbaas_postgres_user", username=name)


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


class TestDatabases:
    def test_a_life(self, instance: Instance, access: Access, fresh: Callable[[str], str]) -> None:
        name = fresh("d")
        access("create_dbaas_pg_database", database_name=name)
        assert name in access.get()["databases"]
        query = (
            "select pg_get_userbyid(datdba)::text, datcollate::text, datctype::text from pg_database where datname = "
        )
        assert instance.sql(access.service, query + f"'{name}'", dbname=name) == [
            ("avnadmin", "en_US.UTF-8", "en_US.UTF-8")
        ]
        another_second()
        assert access.refused("create_dbaas_pg_database", database_name=name) == f"Database {name} already exists"
        with psycopg.connect(instance.dsn(access.service, dbname=name)):
            access("delete_dbaas_pg_database", database_name=name)
        assert name not in access.get()["databases"]
        another_second()
        assert access.refused("delete_dbaas_pg_database", 404, database_name=name).endswith("does not exist")

    def test_locales(self, instance: Instance, access: Access, fresh: Callable[[str], str]) -> None:
        name = fresh("d")
        access("create_dbaas_pg_database", database_name=name, lc_collate="C", lc_ctype="C")
        query = f"select datcollate::text, datctype::text from pg_database where datname = '{name}'"
        assert instance.sql(access.service, query) == [("C", "C")]
        access("delete_dbaas_pg_database", database_name=name)
        another_second()
        text = access.refused("create_dbaas_pg_database", 400, database_name=name, lc_collate="xx_YY")
        assert text.startswith("lc-collate: the service's host does not have the locale xx_YY; it has C")
        for wrong in ("", "C'; drop", "a b", "../C", "é"):
            text = access.refused("create_dbaas_pg_database", 400, database_name=name, lc_ctype=wrong)
            assert text.startswith("lc-ctype: must be the name of a locale"), wrong

    def test_of_sql(self, instance: Instance, access: Access) -> None:
        instance.sql(access.service, 'create database "made in; sql"')
        until(lambda: "made in; sql" in access.get()["databases"], 20, "the database is observed")
        access.done(access.escaped("DELETE", "database", "made in; sql"))
        assert "made in; sql" not in access.get()["databases"]

    def test_the_default_stays(self, access: Access) -> None:
        text = access.refused("delete_dbaas_pg_database", database_name="defaultdb")
        assert text == "Database defaultdb is the service's default database and cannot be deleted"
        for other in ("postgres", "template1", "template0"):
            assert access.refused("delete_dbaas_pg_database", 404, database_name=other).endswith("does not exist")


class TestPools:
    def test_a_life(self, instance: Instance, access: Access, fresh: Callable[[str], str]) -> None:
        user, base, name = fresh("u"), fresh("d"), fresh("p")
        access("create_dbaas_postgres_user", username=user)
        access("create_dbaas_pg_database", database_name=base)
        access("create_dbaas_pg_connection_pool", name=name, database_name=base)
        service = access.get()
        port = int(service["uri-params"]["port"]) + 1
        uri = f"postgres://avnadmin@{service['uri-params']['host']}:{port}/{name}?sslmode=require"
        assert access.pools()[name] == {
            "name": name, "database": base, "mode": "transaction", "size": 10, "username": "", "connection-uri": uri
        }  # fmt: skip
        assert [(one["component"], one["port"]) for one in service["components"]] == [
            ("pg", port - 1),
            ("pgbouncer", port),
        ]
        through = {"dbname": name, "port": str(port)}
        assert access.login(user, access.password(user), **through) == (user, base)
        access("update_dbaas_pg_connection_pool", connection_pool_name=name, mode="session", size=3, username=user)
        changed = access.pools()[name]
        assert (changed["mode"], changed["size"], changed["username"]) == ("session", 3, user)
        assert changed["connection-uri"] == uri.replace("avnadmin", user)
        assert access.login(user, access.password(user), **through) == (user, base)
        with pytest.raises(psycopg.OperationalError):
            access.login("avnadmin", access.password("avnadmin"), **through)
        in_use = f" is used by connection pools: {name}. Delete them first."
        assert access.refused("delete_dbaas_postgres_user", username=user) == f"User {user}{in_use}"
        assert access.refused("delete_dbaas_pg_database", database_name=base) == f"Database {base}{in_use}"
        access("delete_dbaas_pg_connection_pool", connection_pool_name=name)
        assert access.get()["connection-pools"] == []
        assert [one["component"] for one in access.get()["components"]] == ["pg"]
        access("delete_dbaas_pg_database", database_name=base)
        access("delete_dbaas_postgres_user", username=user)

    def test_a_reset_counts_in_pools_too(self, access: Access, fresh: Callable[[str], str]) -> None:
        user, name = fresh("u"), fresh("p")
        access("create_dbaas_postgres_user", username=user)
        access("create_dbaas_pg_connection_pool", name=name, database_name="defaultdb", size=2)
        through = {"dbname": name, "port": str(int(access.get()["uri-params"]["port"]) + 1)}
        old = access.password(user)
        assert access.login(user, old, **through) == (user, "defaultdb")
        access("reset_dbaas_postgres_user_password", username=user)
        assert access.login(user, access.password(user), **through) == (user, "defaultdb")
        with pytest.raises(psycopg.OperationalError):
            access.login(user, old, **through)
        access("delete_dbaas_pg_connection_pool", connection_pool_name=name)
        access("delete_dbaas_postgres_user", username=user)

    def test_refusals(self, access: Access) -> None:
        create = "create_dbaas_pg_connection_pool"
        good = {"name": "p", "database_name": "defaultdb"}
        text = access.refused(create, 400, **good | {"database_name": "nowhere"})
        assert text == "database-name: the service has no database nowhere"
        assert access.refused(create, 400, **good, username="nobody") == "username: the service has no user nobody"
        text = access.refused(create, **good, size=21)
        assert text.startswith("size: the pools would take 21 connections (p 21), but 20 are left for them")
        assert "from 1 to 10000" in access.refused(create, 400, **good, size=0)
        assert "one of" in access.refused(create, 400, **good, mode="magic")
        for call in ("delete_dbaas_pg_connection_pool", "update_dbaas_pg_connection_pool"):
            assert access.refused(call, 404, connection_pool_name="nowhere") == "Connection pool does not exist"

    def test_pools_and_plan(self, instance: Instance, access: Access) -> None:
        access("create_dbaas_pg_connection_pool", name="whole", database_name="defaultdb", size=20)
        another_second()
        assert access.refused("create_dbaas_pg_connection_pool", name="whole", database_name="defaultdb")
        text = access.refused("create_dbaas_pg_connection_pool", name="more", database_name="defaultdb", size=1)
        assert "(more 1, whole 20)" in text
        text = refusal(
            access.client.update_dbaas_service_pg, 409, name=access.service, pgbouncer_settings={"autodb_pool_size": 1}
        )
        assert text.startswith("pgbouncer-settings: the pools would take 21 connections")
        access("delete_dbaas_pg_connection_pool", connection_pool_name="whole")

    def test_automatic_pools(self, instance: Instance, access: Access, fresh: Callable[[str], str]) -> None:
        """`autodb_pool_size` needs no pool; a service cannot be born with more of it than it can bear."""
        create = access.client.create_dbaas_service_pg
        text = refusal(create, 409, name=fresh("c"), plan="hobbyist-2", pgbouncer_settings={"autodb_pool_size": 21})
        assert "(autodb_pool_size 21), but 20 are left" in text
        update = access.client.update_dbaas_service_pg
        operation = update(name=access.service, pgbouncer_settings={"autodb_pool_size": 2})
        assert instance.finished(operation)["state"] == "success"
        assert [one["component"] for one in access.get()["components"]] == ["pg", "pgbouncer"]
        port = str(int(access.get()["uri-params"]["port"]) + 1)
        assert access.login("avnadmin", access.password("avnadmin"), port=port) == ("avnadmin", "defaultdb")
        operation = update(name=access.service, pgbouncer_settings={"autodb_pool_size": 0})
        assert instance.finished(operation)["state"] == "success"
        assert [one["component"] for one in access.get()["components"]] == ["pg"]

    def test_settings_are_shown_back(self, instance: Instance, access: Access) -> None:
        sent = {
            "server_idle_timeout": 0,
            "ignore_startup_parameters": ["search_path"],
            "server_reset_query_always": True,
        }
        operation = access.client.update_dbaas_service_pg(name=access.service, pgbouncer_settings=sent)
        assert instance.finished(operation)["state"] == "success"
        assert access.get()["pgbouncer-settings"].items() >= sent.items()
        operation = access.client.update_dbaas_service_pg(name=access.service, pgbouncer_settings={"min_pool_size": 1})
        assert instance.finished(operation)["state"] == "success"
        assert access.get()["pgbouncer-settings"].items() >= (sent | {"min_pool_size": 1}).items()


NASTY = (
    "a'b",
    'a"b',
    "a;b",
    "a b",
    "a\nb",
    "a\\b",
    "a%b",
    "a#b",
    "a*",
    "*",
    "é",
    "а",
    "-a",
    ".a",
    "a/b",
    "$(id)",
    "{a}",
)
RESERVED = (
    "postgres",
    "Postgres",
    "pgbouncer",
    "PUBLIC",
    "pg_monitor",
    "pgherd_pooler",
    "template1",
    "all",
    "replication",
)


class TestNames:
    @pytest.mark.parametrize("name", NASTY)
    def test_of_a_wrong_form(self, access: Access, name: str) -> None:
        text = access.refused("create_dbaas_postgres_user", 400, username=name)
        assert text.startswith("username: must be 1 to 63 letters")
        text = access.refused("create_dbaas_pg_database", 400, database_name=name)
        assert text.startswith("database-name: must be 1 to 40 letters")
        text = access.refused("create_dbaas_pg_connection_pool", 400, name=name, database_name="defaultdb")
        assert text.startswith("name: must be 1 to 63 letters")

    @pytest.mark.parametrize("name", RESERVED)
    def test_reserved(self, access: Access, name: str) -> None:
        for call, field, more in (
            ("create_dbaas_postgres_user", "username", {}),
            ("create_dbaas_pg_database", "database_name", {}),
            ("create_dbaas_pg_connection_pool", "name", {"database_name": "defaultdb"}),
        ):
            assert f"{name} is reserved" in access.refused(call, 400, **{field: name}, **more)

    @pytest.mark.parametrize("name", [*NASTY, *RESERVED, "x" * 63])
    def test_nothing_is_deleted(self, access: Access, name: str) -> None:
        for method, *path in (
            ("DELETE", "user", name),
            ("PUT", "user", name, "password", "reset"),
            ("DELETE", "database", name),
            ("DELETE", "connection-pool", name),
        ):
            answer = access.escaped(method, *path)
            assert (answer.status_code, "does not exist" in answer.json()["message"]) == (404, True), path

    def test_any_legal_character(self, access: Access) -> None:
        name = "0A_b.c-D.e"
        access("create_dbaas_postgres_user", username=name)
        access("create_dbaas_pg_database", database_name=name)
        access("create_dbaas_pg_connection_pool", name=name, database_name=name, username=name, size=1)
        port = str(int(access.get()["uri-params"]["port"]) + 1)
        assert access.login(name, access.password(name), dbname=name, port=port) == (name, name)
        access("delete_dbaas_pg_connection_pool", connection_pool_name=name)
        access("delete_dbaas_pg_database", database_name=name)
        access("delete_dbaas_postgres_user", username=name)

    def test_passwords(self, access: Access) -> None:
        for wrong in ("short", "with a space", "quote'quote", "ümlaut-ümlaut", "x" * 257):
            call = "reset_dbaas_postgres_user_password"
            text = access.refused(call, 400, username="avnadmin", password=wrong)
            assert text.startswith("password: must be") and wrong not in text


def test_at_once(instance: Instance, access: Access, fresh: Callable[[str], str]) -> None:
    """Two pools, a user and a database: serialised inside, never busy; nor are their ends."""
    pools, user, base = [fresh("p"), fresh("p")], fresh("u"), fresh("d")

    def together(*calls: tuple[str, dict[str, Any]]) -> None:
        faults: list[BaseException] = []

        def one(operation: str, fields: dict[str, Any]) -> None:
            try:
                client = instance.client()
                done = instance.finished(getattr(client, operation)(service_name=access.service, **fields))
                assert done["state"] == "success", done
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=one, args=call) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults, faults

    together(
        *(("create_dbaas_pg_connection_pool", {"name": name, "database_name": "defaultdb"}) for name in pools),
        ("create_dbaas_postgres_user", {"username": user}),
        ("create_dbaas_pg_database", {"database_name": base}),
    )
    assert set(access.pools()) == set(pools) and user in access.users() and base in access.get()["databases"]
    together(
        *(("delete_dbaas_pg_connection_pool", {"connection_pool_name": name}) for name in pools),
        ("delete_dbaas_postgres_user", {"username": user}),
        ("delete_dbaas_pg_database", {"database_name": base}),
    )
    assert not access.pools() and user not in access.users() and base not in access.get()["databases"]


def test_no_service_of_this_name(client: Client) -> None:
    for call, fields in (
        ("create_dbaas_postgres_user", {"username": "a"}),
        ("delete_dbaas_postgres_user", {"username": "a"}),
        ("reset_dbaas_postgres_user_password", {"username": "a"}),
        ("reveal_dbaas_postgres_user_password", {"username": "a"}),
        ("update_dbaas_postgres_allow_replication", {"username": "a", "allow_replication": True}),
        ("create_dbaas_pg_database", {"database_name": "a"}),
        ("delete_dbaas_pg_database", {"database_name": "a"}),
        ("create_dbaas_pg_connection_pool", {"name": "a", "database_name": "a"}),
        ("update_dbaas_pg_connection_pool", {"connection_pool_name": "a", "size": 1}),
        ("delete_dbaas_pg_connection_pool", {"connection_pool_name": "a"}),
    ):
        text = refusal(getattr(client, call), 404, service_name="c-nobody", **fields)
        assert text == "Service does not exist", call


class TestEvents:
    def _events(self, instance: Instance, key: tuple[str, str] | None = None, query: str = "") -> Any:
        return instance.call("GET", f"/pgherd/v1/event{query}", key=key)

    def test_changes_and_reveals_leave_one(self, instance: Instance, access: Access) -> None:
        access.password("avnadmin")
        secret = "a-secret-of-this-test"
        access("reset_dbaas_postgres_user_password", username="avnadmin", password=secret)
        access.refused("delete_dbaas_pg_database", database_name="defaultdb")
        answer = self._events(instance, query="?limit=3")
        found = answer.json()["events"]
        assert [(one["command"], one["subject"], one["key"]) for one in found] == [
            ("delete-dbaas-pg-database", f"{access.service}/defaultdb", instance.key[0]),
            ("reset-dbaas-postgres-user-password", f"{access.service}/avnadmin", instance.key[0]),
            ("reveal-dbaas-postgres-user-password", f"{access.service}/avnadmin", instance.key[0]),
        ]
        assert [one["result"] for one in found[1:]] == ["accepted"] * 2
        assert [one.get("outcome") for one in found] == [None, "success", None]
        operation = instance.client().get_operation(id=found[1]["operation"])
        assert operation["state"] == "success" and not found[0].keys() & {"operation", "outcome"}
        assert "default database" in found[0]["result"] and found[0]["remote"] == "127.0.0.1"
        assert secret not in self._events(instance, query="?limit=1000").text
        older = self._events(instance, query=f"?limit=1&before={found[0]['id']}").json()["events"]
        assert older == found[1:2]
        for wrong in ("limit=0", "limit=1001", f"limit={'0' * 20}1001", f"before={'0' * 20}1{'9' * 40}", "before=%00"):
            assert self._events(instance, query=f"?{wrong}").status_code == 400, wrong
        assert self._events(instance, query=f"?before={'9' * 5000}").status_code == 400

    def test_who_sees_what(self, instance: Instance, organization: Organization) -> None:
        instance.call("DELETE", "/v2/dbaas-service/nothing-here", key=organization.admin)
        reader = organization.key("read-only")
        instance.call("DELETE", "/v2/dbaas-service/nothing-here", key=reader)
        found = self._events(instance, organization.admin).json()["events"]
        assert {one["organization"] for one in found} == {organization.name}
        assert [one["key"] for one in found] == [reader[0], organization.admin[0]]
        assert found[0]["result"].startswith("Forbidden by role policy")
        assert found[1]["result"] == "Service does not exist"
        assert self._events(instance, reader).status_code == 403
        everything = self._events(instance, query="?limit=50").json()["events"]
        assert [one for one in everything if one["command"] == "create-api-key" and organization.name in one["subject"]]
