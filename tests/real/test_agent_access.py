"""Users and databases: single changes of a cluster, each carried out once, by the real agent."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import msgspec
import psycopg
import pytest

from pgherd import sealing
from pgherd.agent.converge import Convergence
from pgherd.agent.records import read_record, write_private
from pgherd.drivers import postgres
from pgherd.drivers import postgres_access as access
from pgherd.spec import NodeStatus, Task, TaskResult
from tests.plugins.host import RunningHost, verifier

_ids = itertools.count(1)


class Service:
    """A running node and the tasks that it is given."""

    def __init__(self, host: RunningHost) -> None:
        self.host, self.spec = host, host.running()

    def task(self, kind: Any, name: str, **more: Any) -> TaskResult:
        """Have a task carried out."""
        if password := more.pop("password", None):
            more["verifier"] = self.sealed(verifier(password))
        return self.give(Task(f"t{next(_ids)}", kind, name, **more))

    def give(self, task: Task) -> TaskResult:
        self.spec = self.host.change(self.spec, task=task)
        result = self.host.until_in_force(self.spec).task
        assert result is not None and result.id == task.id
        return result

    def sealed(self, text: str) -> str:
        return sealing.seal(sealing.public_key(self.host.agent.host.private_key), text)

    @property
    def status(self) -> NodeStatus:
        return self.host.link.statuses[self.spec.node_id]

    def sql(self, *statements: str, **more: Any) -> Any:
        with self.host.connect(self.spec, **more) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchone() if cursor.description else None


@pytest.fixture(scope="module")
def service(host: RunningHost) -> Service:
    return Service(host)


def _done(result: TaskResult) -> None:
    assert (result.state, result.reason) == ("done", "")


def test_a_created_user_logs_in_and_is_seen_with_the_fingerprint_of_its_password(service: Service) -> None:
    known = verifier("first-secret")
    _done(service.give(Task("mine", "create-user", "app", verifier=service.sealed(known))))
    seen = {role.name: role for role in service.status.users}
    assert seen["app"].password == hashlib.sha256(known.encode()).hexdigest()[:16]
    assert not seen["app"].replication
    as_app = {"user": "app", "password": "first-secret"}
    assert service.sql("SELECT current_user", **as_app) == ("app",)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        service.sql("CREATE DATABASE no", **as_app)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        service.sql("CREATE ROLE no", **as_app)
    service.sql("ALTER ROLE app PASSWORD 'by-sql'")
    service.host.until(
        service.spec, lambda s: any(r.name == "app" and r.password != seen["app"].password for r in s.users)
    )
    assert service.task("create-user", "app", password="x" * 8).reason == "User app already exists."
    _done(service.task("set-password", "app", password="again-mine"))
    service.sql("SELECT 1", user="app", password="again-mine")


def test_a_task_is_carried_out_once_and_its_repetition_changes_nothing(service: Service) -> None:
    once = Task("once", "create-user", "single", verifier=service.sealed(verifier("one-secret")))
    _done(service.give(once))
    service.sql("DROP ROLE single")
    _done(service.give(once))
    assert "single" not in {role.name for role in service.status.users}


def test_replication_can_be_given_and_taken(service: Service) -> None:
    _done(service.task("create-user", "copier", password="rep-secret", replication=True))
    assert next(r for r in service.status.users if r.name == "copier").replication
    _done(service.task("set-replication", "copier", replication=False))
    assert not next(r for r in service.status.users if r.name == "copier").replication


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("create-user", "postgres", "belongs to the platform"), ("create-user", "pg_x", "belongs to the platform"),
        ("create-user", "pgherd_pooler", "belongs to the"), ("drop-user", "avnadmin", "is the service's admin"),
        ("set-password", "nobody", "does not exist"), ("set-replication", "nobody", "does not exist"),
        ("create-database", "defaultdb", "belongs to the platform"), ("drop-database", "postgres", "belongs to the"),
        ("create-user", "a" * 64, "at most 63 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_words(service: Service, kind: str, name: str, words: str) -> None:
    result = service.task(kind, name, password="some-secret")
    assert result.state == "refused" and words in result.reason


def test_a_dropped_user_leaves_its_objects_to_the_admin_in_every_database(service: Service) -> None:
    _done(service.task("create-user", "leaver", password="going-away"))
    _done(service.task("create-database", "work"))
    odd = "host=192.0.2.1 \"x' dbname=y"
    quoted = '"' + odd.replace('"', '""') + '"'
    service.sql(f"CREATE DATABASE {quoted}", "ALTER DATABASE work SET default_transaction_read_only = on",
                "ALTER DATABASE work SET role = 'avnadmin'")  # fmt: skip
    as_leaver = {"user": "leaver", "password": "going-away"}
    for database in ("work", odd):
        service.sql(
            "SET default_transaction_read_only = off", "GRANT CREATE ON SCHEMA public TO leaver", dbname=database
        )
    service.sql("SET default_transaction_read_only = off", "RESET role", "CREATE TABLE public.kept AS SELECT 1 AS a",
                dbname=odd, **as_leaver)  # fmt: skip
    service.sql("ALTER ROLE leaver CREATEDB", "GRANT leaver TO avnadmin", "CREATE DATABASE of_leaver OWNER leaver")
    with service.host.connect(service.spec, **as_leaver) as session:
        _done(service.task("drop-user", "leaver"))
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert "leaver" not in {role.name for role in service.status.users}
    owned = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'kept'"
    assert service.sql(owned, dbname=odd) == ("avnadmin",)
    owned = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'of_leaver'"
    assert service.sql(owned) == ("avnadmin",)
    _done(service.task("drop-user", "leaver"))


def test_a_user_whose_objects_are_in_use_stays_as_it_was(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open transaction of another one holds a lock: the deletion fails with words and can be asked for again."""
    monkeypatch.setitem(access.OPTIONS, "lock_timeout", "500")
    _done(service.task("create-user", "holder", password="holds-a-table"))
    as_holder = {"user": "holder", "password": "holds-a-table"}
    service.sql("GRANT CREATE ON SCHEMA public TO holder")
    service.sql("CREATE TABLE public.held AS SELECT 1 AS a", "GRANT SELECT ON public.held TO avnadmin", **as_holder)
    with service.host.connect(service.spec) as reader, reader.transaction():
        reader.execute("SELECT * FROM public.held")
        result = service.task("drop-user", "holder")
        assert result.state == "refused" and "in database defaultdb is in use" in result.reason, result
        assert "holder" in {role.name for role in service.status.users}
        assert service.sql("SELECT a FROM public.held", **as_holder) == (1,)
    _done(service.task("drop-user", "holder"))
    assert service.sql("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'held'") == ("avnadmin",)


def test_what_cannot_be_passed_on_is_named_before_anything_moves(service: Service) -> None:
    _done(service.task("create-user", "publisher", password="owns-a-database"))
    as_publisher = {"user": "publisher", "password": "owns-a-database"}
    service.sql("GRANT publisher TO avnadmin", "CREATE DATABASE news OWNER publisher", "CREATE DATABASE shut")
    service.sql("CREATE TABLE public.mine AS SELECT 1 AS a", dbname="news", **as_publisher)
    service.sql("GRANT CREATE ON SCHEMA public TO publisher", dbname="shut")
    service.sql("CREATE TABLE public.mine AS SELECT 1 AS a", dbname="shut", **as_publisher)
    subscribe = (  # as pgherd.create_subscription does, without another server
        "CREATE SUBSCRIPTION s CONNECTION $$host='192.0.2.1' dbname='d' user='u' password='p'$$ PUBLICATION p"
        " WITH (connect = false);"
        "ALTER ROLE publisher SUPERUSER; ALTER SUBSCRIPTION s OWNER TO publisher; ALTER ROLE publisher NOSUPERUSER;"
    )
    postgres.psql(Convergence(service.host.agent.host, service.spec).cluster, subscribe, database="news")
    service.sql("ALTER DATABASE shut ALLOW_CONNECTIONS false")
    result = service.task("drop-user", "publisher")
    assert result.state == "refused" and "objects in database shut, which allows no connections" in result.reason
    assert "subscription s of database news" in result.reason
    assert service.sql("SELECT a FROM public.mine", dbname="news", **as_publisher) == (1,)
    service.sql("ALTER DATABASE shut ALLOW_CONNECTIONS true")
    service.sql("ALTER SUBSCRIPTION s SET (slot_name = NONE)", "DROP SUBSCRIPTION s", dbname="news", **as_publisher)
    _done(service.task("drop-user", "publisher"))
    owned = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'mine'"
    assert service.sql(owned, dbname="news") == service.sql(owned, dbname="shut") == ("avnadmin",)


def test_a_database_has_its_locale_and_owner_and_goes_with_its_connections(service: Service) -> None:
    _done(service.task("create-database", "Shop-1", lc_collate="C", lc_ctype="C.UTF-8"))
    assert "Shop-1" in service.status.databases
    row = service.sql(
        "SELECT datcollate, datctype, pg_get_userbyid(datdba), pg_encoding_to_char(encoding) FROM pg_database"
        " WHERE datname = 'Shop-1'"
    )
    assert row == ("C", "C.UTF-8", "avnadmin", "UTF8")
    service.sql("CREATE TABLE public.t ()", dbname="Shop-1")
    assert service.task("create-database", "Shop-1").reason == "Database Shop-1 already exists."
    for locale in ("xx_XX.UTF-8", "de'; DROP"):
        result = service.task("create-database", "other", lc_collate=locale)
        assert result.state == "refused" and "is not known here" in result.reason
    with service.host.connect(service.spec, dbname="Shop-1") as session:
        _done(service.task("drop-database", "Shop-1"))
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert "Shop-1" not in service.status.databases
    _done(service.task("drop-database", "Shop-1"))


def test_what_postgresql_refuses_is_the_reason(service: Service) -> None:
    service.sql("CREATE DATABASE held", "ALTER DATABASE held IS_TEMPLATE true")
    assert service.task("drop-database", "held").reason == "Database held is a template."
    service.sql("ALTER DATABASE held IS_TEMPLATE false", "ALTER DATABASE held ALLOW_CONNECTIONS false")
    _done(service.task("drop-database", "held"))


def test_an_agent_that_died_while_it_created_finds_its_own_work(service: Service) -> None:
    host = service.host
    directory = host.directory(service.spec)
    task = Task("died", "create-database", "halfway")
    record = read_record(directory)
    record.begun = "died"
    write_private(directory / "node.json", msgspec.json.encode(record))
    service.sql("CREATE DATABASE halfway")
    _done(service.give(task))
