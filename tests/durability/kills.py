"""Where pgherd's processes can be killed, and what each operation must have done all the same.

The places come from running each operation once and reading its trace, so a new operation or step is covered
without new code here.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from tests.contract.processes import metadata
from tests.plugins.instance import Instance, until

PROCESSES = ("api", "worker", "agent")


def arm(instance: Instance, line: str) -> None:
    """The first process that passes the place carries the action out."""
    aside = instance.failpoints / "arm.new"
    aside.write_text(line)
    aside.chmod(0o666)
    aside.rename(instance.failpoints / "arm")


def disarm(instance: Instance) -> bool:
    """Whether the armed place was passed."""
    armed = instance.failpoints / "arm"
    fired = not armed.exists()
    armed.unlink(missing_ok=True)
    return fired


def trace(instance: Instance) -> Path:
    """Every place that was passed; world-writable, because three users write to it."""
    path = instance.failpoints / "trace"
    path.touch()
    path.chmod(0o666)
    return path


def insist(instance: Instance, method: str, path: str, body: Any = None, own: bool = False) -> dict[str, Any]:
    """Sign once and send until there is an answer, as the Go clients do; then poll to the end. `own`: not of /v2."""
    url = (instance.endpoint.removesuffix("/v2") + "/pgherd/v1" if own else instance.endpoint) + path
    request = instance.sign(requests.Request(method, url, json=body))
    end = time.monotonic() + 20
    while True:
        try:
            answer = instance.send(request)
            break
        except requests.ConnectionError:
            assert time.monotonic() < end, "the API did not come back within 20 s"
            time.sleep(0.05)
    assert answer.status_code == 200, answer.text
    return instance.finished(answer.json())


def back_up(instance: Instance, name: str) -> dict[str, Any]:
    return insist(instance, "POST", f"/service/{name}/backup", {"full": False}, own=True)


class Create:
    """Create a service from nothing; afterwards it answers over TLS."""

    def prepare(self, instance: Instance) -> str:
        return f"k-{uuid.uuid4().hex[:10]}"

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "POST", f"/dbaas-postgres/{name}", {"plan": "hobbyist-2"})

    def check(self, instance: Instance, name: str) -> None:
        assert instance.sql(name, "select 1") == [(1,)]
        instance.delete(name)


class First(Create):
    """Create a service and back it up at once; afterwards its repository, made in between, holds that backup."""

    processes = ("agent",)
    places = re.compile("agent repository")

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        assert super().run(instance, name)["state"] == "success"
        return back_up(instance, name)

    def check(self, instance: Instance, name: str) -> None:
        assert len(instance.call("GET", f"/pgherd/v1/service/{name}/backup").json()["backups"]) == 1
        super().check(instance, name)


class Update:
    """Change a running service by reload and by restart; afterwards PostgreSQL shows the new values."""

    name = ""
    count = 0

    def prepare(self, instance: Instance) -> str:
        if not self.name:
            self.name = instance.create()
        return self.name

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        self.count += 1
        settings = {"log_min_duration_statement": 1000 + self.count, "max_files_per_process": 1000 + self.count}
        body = {"pg-settings": settings, "ip-filter": [f"192.0.2.{self.count % 250}/32"]}
        return insist(instance, "PUT", f"/dbaas-postgres/{name}", body)

    def check(self, instance: Instance, name: str) -> None:
        assert instance.sql(name, "show max_files_per_process") == [(str(1000 + self.count),)]
        shown = instance.sql(name, "select setting from pg_settings where name = 'log_min_duration_statement'")
        assert shown == [(str(1000 + self.count),)]


class Delete:
    """Delete a running service; afterwards there is nothing of it."""

    def prepare(self, instance: Instance) -> str:
        return instance.create()

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "DELETE", f"/dbaas-service/{name}")

    def check(self, instance: Instance, name: str) -> None:
        assert instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 404


class User(Update):
    """Create a user; afterwards the password that is revealed logs in. The host's other steps are the update's."""

    places = re.compile(r"(api|worker) |agent running (admin|task|record)")

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        self.count += 1
        return insist(instance, "POST", f"/dbaas-postgres/{name}/user", {"username": f"u{self.count}"})

    def check(self, instance: Instance, name: str) -> None:
        user = f"u{self.count}"
        answer = instance.client().reveal_dbaas_postgres_user_password(service_name=name, username=user)
        who = instance.sql(name, "select current_user::text", user=user, password=answer["password"])
        assert who == [(user,)]


class Password(User):
    """Reset the admin's password; afterwards the new one logs in and is revealed."""

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        self.count += 1
        path = f"/dbaas-postgres/{name}/user/avnadmin/password/reset"
        return insist(instance, "PUT", path, {"password": f"password-{self.count}"})

    def check(self, instance: Instance, name: str) -> None:
        assert f"password-{self.count}" in instance.dsn(name)
        assert instance.sql(name, "select 1") == [(1,)]


class Pool(Update):
    """Create a pool, and the next time another size of it; afterwards it serves."""

    places = re.compile(r"(api|worker) |agent running (pools|record)")

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        self.count += 1
        if self.count == 1:
            body = {"name": "pool", "database-name": "defaultdb", "size": 19}
            return insist(instance, "POST", f"/dbaas-postgres/{name}/connection-pool", body)
        path = f"/dbaas-postgres/{name}/connection-pool/pool"
        return insist(instance, "PUT", path, {"size": 1 + self.count % 18})

    def check(self, instance: Instance, name: str) -> None:
        service = instance.client().get_dbaas_service_pg(name=name)
        assert [pool["name"] for pool in service["connection-pools"]] == ["pool"]
        port = str(int(service["uri-params"]["port"]) + 1)
        assert instance.sql(name, "select 1", port=port, dbname="pool") == [(1,)]


class Power(Update):
    """Stop a service; afterwards it is down, and a start brings it back with what it holds."""

    processes = ("worker", "agent")

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "PUT", f"/service/{name}/stop", own=True)

    def check(self, instance: Instance, name: str) -> None:
        assert instance.client().get_dbaas_service_pg(name=name)["state"] == "poweroff"
        with pytest.raises(psycopg.OperationalError):
            instance.sql(name, "select 1")
        assert insist(instance, "PUT", f"/service/{name}/start", own=True)["state"] == "success"
        assert instance.sql(name, "select 1") == [(1,)]


class Maintenance(Update):
    """Bring a parameter that waits for a restart into force; what the host does for it is the update's."""

    processes = ("worker",)

    def prepare(self, instance: Instance) -> str:
        name = super().prepare(instance)
        self.count += 1
        wish = f"jsonb_set(wish, '{{pg_settings,max_files_per_process}}', '{2000 + self.count}')"
        metadata(instance, f"update service set wish = {wish} where name = '{name}' and deleted_at is null")
        return name

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "PUT", f"/dbaas-postgres/{name}/maintenance/start")

    def check(self, instance: Instance, name: str) -> None:
        assert instance.sql(name, "show max_files_per_process") == [(str(2000 + self.count),)]


class Backup(Update):
    """Back a service up; afterwards there is exactly one backup more."""

    places = re.compile(r"(api|worker) |agent job")

    def prepare(self, instance: Instance) -> str:
        if not self.name:
            self.name = instance.create()
            assert self.run(instance, self.name)["state"] == "success"
        return self.name

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        self.count += 1
        return back_up(instance, name)

    def check(self, instance: Instance, name: str) -> None:
        found = instance.call("GET", f"/pgherd/v1/service/{name}/backup").json()
        assert (len(found["backups"]), "running" in found) == (self.count, False), found


class Restore(Backup):
    """Put a service's data back in place; afterwards it holds exactly what it held then, whatever came later."""

    processes = ("worker", "agent")
    places = re.compile(r"worker restore (restore the data|before record)|agent origin")
    moment = ""

    def prepare(self, instance: Instance) -> str:
        if not self.name:
            self.name = instance.create()
            instance.sql(self.name, "create table held (i int)")
            assert super().run(instance, self.name)["state"] == "success"
            until(lambda: time.time() > self._ended(instance) + 1.1, 10, "the second of the backup is over")
            instance.sql(self.name, "insert into held values (1)")
            [(now,)] = instance.sql(self.name, "select clock_timestamp()")
            self.moment = now.isoformat()
        instance.sql(self.name, "insert into held values (2)")
        return self.name

    def _ended(self, instance: Instance) -> float:
        found = instance.call("GET", f"/pgherd/v1/service/{self.name}/backup").json()["backups"]
        return datetime.fromisoformat(found[-1]["time"]).timestamp()

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "POST", f"/service/{name}/restore", {"to": self.moment}, own=True)

    def check(self, instance: Instance, name: str) -> None:
        assert instance.sql(name, "select i from held") == [(1,)]


class Undo(Restore):
    """Take a restore back; afterwards the service holds what it held before it."""

    held: Any = None

    def prepare(self, instance: Instance) -> str:
        name = super().prepare(instance)
        self.held = instance.sql(name, "select i from held")
        assert super().run(instance, name)["state"] == "success"
        return name

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "POST", f"/service/{name}/restore/undo", own=True)

    def check(self, instance: Instance, name: str) -> None:
        assert instance.sql(name, "select i from held") == self.held
        node = metadata(instance, f"select id from node where name = '{name}-1' and spec is not null")
        data = instance.home / "nodes" / node / "data"
        until(lambda: not [*data.glob("before-*"), *data.glob("ma[dk]*")], 30, "nothing is left beside the data")


class Keep(Restore):
    """Delete a service that can come back; afterwards it does, with all that it held."""

    places = re.compile(r"worker |agent (kept|origin)")
    held: Any = None

    def prepare(self, instance: Instance) -> str:
        name = super().prepare(instance)
        self.held = instance.sql(name, "select i from held")
        return name

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "DELETE", f"/dbaas-service/{name}")

    def check(self, instance: Instance, name: str) -> None:
        assert instance.call("GET", f"/v2/dbaas-postgres/{name}").status_code == 404
        assert insist(instance, "POST", f"/service/{name}/undelete", own=True)["state"] == "success"
        assert instance.sql(name, "select i from held") == self.held


class Undelete(Keep):
    """Bring a deleted service back."""

    def prepare(self, instance: Instance) -> str:
        name = super().prepare(instance)
        assert super().run(instance, name)["state"] == "success"
        return name

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "POST", f"/service/{name}/undelete", own=True)

    def check(self, instance: Instance, name: str) -> None:
        assert instance.sql(name, "select i from held") == self.held


class Fork(Restore):
    """Make a service from another one's data of now. What is made from a repository is the restore's."""

    processes = ("agent",)
    places = re.compile(r"agent origin (copied|made|exchange begin)")

    def run(self, instance: Instance, name: str) -> dict[str, Any]:
        return insist(instance, "POST", "/dbaas-postgres/k-fork", {"fork-from-service": name, "plan": "hobbyist-2"})

    def check(self, instance: Instance, name: str) -> None:
        assert instance.sql("k-fork", "select i from held") == instance.sql(name, "select i from held")
        instance.delete("k-fork")


OPERATIONS: dict[str, Callable[[], Any]] = {
    "create": Create,
    "update": Update,
    "delete": Delete,
    "user": User,
    "password": Password,
    "pool": Pool,
    "power": Power,
    "maintenance": Maintenance,
    "first": First,
    "backup": Backup,
    "restore": Restore,
    "undo": Undo,
    "fork": Fork,
}

#: Those of an instance that keeps deleted services for a while.
KEEPING: dict[str, Callable[[], Any]] = {"keep": Keep, "undelete": Undelete}


def rounds(kinds: Iterable[str]) -> list[Any]:
    """Each of these operations with each process that is to be killed during it."""
    known = OPERATIONS | KEEPING

    def marks(kind: str) -> tuple[pytest.MarkDecorator, ...]:
        return (pytest.mark.repository,) if isinstance(known[kind](), Backup | First) else ()

    found = [(kind, process) for kind in kinds for process in getattr(known[kind], "processes", PROCESSES)]
    return [pytest.param(kind, process, marks=marks(kind)) for kind, process in found]


def clear(instance: Instance) -> None:
    """What a failed test leaves fails no other one."""
    disarm(instance)
    for service in instance.client().list_dbaas_services()["dbaas-services"]:
        instance.delete(service["name"])


def assert_nothing_is_left(instance: Instance) -> None:
    """No service, so no node directory, supervised node, postmaster of a node, or OS user but the warm ones."""
    assert instance.client().list_dbaas_services()["dbaas-services"] == []
    if metadata(instance, "update service set kept_until = now() where kept_until > now() returning 1"):
        until(lambda: instance.node_directories() == [], 60, "what was kept is removed")
    until(lambda: instance.node_directories() == [], 20, "no node directory is left")
    until(lambda: not list((instance.home / "s6").glob("node-*")), 20, "no supervised node is left")
    until(lambda: not instance.processes("/nodes/"), 20, "no process of a node is left")


def is_both(place: str, then: str) -> bool:
    """Whether these are the end of one step of the agent and the beginning of the next."""
    return place.startswith("agent ") and place.endswith(" end") and then.endswith(" begin") and "job" not in place


def kill_at_every_place(instance: Instance, kind: str, process: str) -> None:
    """Run the operation once for each place that `process` passes, killing it there."""
    operation = (OPERATIONS | KEEPING)[kind]()
    lines = trace(instance)
    name = operation.prepare(instance)
    lines.write_text("")
    assert operation.run(instance, name)["state"] == "success"
    passed = list(dict.fromkeys(lines.read_text().splitlines()))
    operation.check(instance, name)
    places = [line for line in passed if line.startswith(f"{process} ") and " warm " not in line]
    # The end of a step is the beginning of the next: nothing happens in between.
    places = [place for place, then in zip(places, [*places[1:], ""], strict=True) if not is_both(place, then)]
    if chosen := getattr(operation, "places", None):
        places = [place for place in places if chosen.match(place)]
    assert places, f"{process} passes no place during {kind}"
    missed = []
    for place in places:
        name = operation.prepare(instance)
        arm(instance, f"{place} kill")
        done = operation.run(instance, name)
        if not disarm(instance):
            missed.append(place)
        assert done["state"] == "success", f"{place}: {done}"
        assert instance.client().get_operation(id=done["id"])["state"] == "success"
        operation.check(instance, name)
    assert len(missed) * 4 <= len(places), f"these places were not passed again: {missed}"
    if getattr(operation, "name", ""):
        instance.delete(operation.name)
    assert_nothing_is_left(instance)
