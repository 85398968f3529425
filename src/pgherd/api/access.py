"""Users and databases of a service: create, delete, passwords, replication."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from pgherd.api.operations import Operations
from pgherd.api.request import Handler, Request
from pgherd.errors import Conflict, NotFound
from pgherd.model import name as names
from pgherd.model.access import LOCALE, Cluster, Password, revealed
from pgherd.model.passwords import new_password
from pgherd.model.service import Secrets, Wish
from pgherd.spec import NodeStatus, Task
from pgherd.store.db import AsyncDb
from pgherd.store.vault import Vault
from pgherd.workflows import access

#: Seconds that update-dbaas-postgres-allow-replication, which answers no operation, waits for its effect.
PATIENCE = 5.0


class Access:
    """The handlers of one API process."""

    def __init__(self, db: AsyncDb, vault: Vault, operations: Operations) -> None:
        self._db = db
        self._vault = vault
        self._operations = operations

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {
            "create-dbaas-postgres-user": self.create_user,
            "delete-dbaas-postgres-user": self.delete_user,
            "reset-dbaas-postgres-user-password": self.reset_password,
            "reveal-dbaas-postgres-user-password": self.reveal_password,
            "update-dbaas-postgres-allow-replication": self.allow_replication,
            "create-dbaas-pg-database": self.create_database,
            "delete-dbaas-pg-database": self.delete_database,
        }

    async def create_user(self, request: Request) -> object:
        """create-dbaas-postgres-user"""
        name = names.username(request.body["username"])
        task = Task("", "create-user", name, replication=request.body.get("allow-replication", False))
        return await self._open(request, task, new_password())

    async def delete_user(self, request: Request) -> object:
        """delete-dbaas-postgres-user: what it owns passes to the admin"""
        return await self._open(request, Task("", "drop-user", request.params["username"]))

    async def reset_password(self, request: Request) -> object:
        """reset-dbaas-postgres-user-password"""
        given = request.body.get("password")
        password = new_password() if given is None else names.password(given)
        return await self._open(request, Task("", "set-password", request.params["username"]), password)

    async def reveal_password(self, request: Request) -> object:
        """reveal-dbaas-postgres-user-password: the one that is in force, as far as it was given here"""
        username = request.params["username"]
        row = await self._db.row(
            "known_passwords",
            organization_id=request.key.organization_id,
            name=request.params["service-name"],
            username=username,
        )
        if row is None:
            raise NotFound("Service does not exist")
        known = [msgspec.json.decode(self._vault.open(sealed), type=Password) for sealed in row["given"]]
        if username == msgspec.convert(row["wish"], Wish).admin:
            first = msgspec.json.decode(self._vault.open(row["secrets"]), type=Secrets)
            known += [Password(first.password, first.verifier)] if first.password else []
            if first.password and (not row["status"] or not row["status"].get("users")):
                return {"username": username, "password": first.password}
        roles = msgspec.convert(row["status"], NodeStatus).users if row["status"] else []
        role = next((role for role in roles if role.name == username), None)
        return {"username": username, "password": revealed(username, role, known)}

    async def allow_replication(self, request: Request) -> object:
        """update-dbaas-postgres-allow-replication: answers the users, once the change is in force"""
        wanted = request.body.get("allow-replication")
        if wanted is not None:
            task = Task("", "set-replication", request.params["username"], replication=wanted)
            accept = partial(_request, request.params["service-name"], task, "")
            ended = await self._operations.settled(request, accept, PATIENCE)
            if ended["state"] in ("failure", "timeout"):
                raise Conflict(ended["message"])
        row = await self._db.row(
            "views", organization_id=request.key.organization_id, name=request.params["service-name"]
        )
        if row is None:
            raise NotFound("Service does not exist")
        status = next((node["status"] for node in row["nodes"] if node["status"]), None)
        users = {} if status is None else Cluster(msgspec.convert(status, NodeStatus), (), (), "").users
        if request.params["username"] not in users:
            raise NotFound("User does not exist")
        if wanted is not None:  # accepted: where it is not observed yet, its operation still goes on
            users[request.params["username"]] = wanted
        return {"users": [{"username": name, "allow-replication": users[name]} for name in sorted(users)]}

    async def create_database(self, request: Request) -> object:
        """create-dbaas-pg-database"""
        body = request.body
        task = Task(
            "",
            "create-database",
            names.database_name(body["database-name"]),
            lc_collate=names.locale("lc-collate", body.get("lc-collate", LOCALE)),
            lc_ctype=names.locale("lc-ctype", body.get("lc-ctype", LOCALE)),
        )
        return await self._open(request, task)

    async def delete_database(self, request: Request) -> object:
        """delete-dbaas-pg-database"""
        return await self._open(request, Task("", "drop-database", request.params["database-name"]))

    async def _open(self, request: Request, task: Task, password: str = "") -> object:
        accept = partial(_request, request.params["service-name"], task, password)
        return await self._operations.open(request, accept)


def _request(service: str, task: Task, password: str, app: Any, caller: Any, operation: Any) -> Any:
    return access.request(app, caller, operation, service, task, password)
