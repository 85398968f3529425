"""Users and databases of a service as they will be: as observed, then as the waiting tasks change them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

import msgspec

from pgherd.errors import Conflict, Incorrect, NotFound
from pgherd.model.name import known_locale, reserved
from pgherd.model.service import DEFAULT_DATABASE
from pgherd.spec import NodeStatus, Pool, Role, Task

LOCALE = "en_US.UTF-8"
#: Most users and databases that requests may make in one service; an observation holds twice as many.
MOST_USERS = MOST_DATABASES = 1000


class Password(msgspec.Struct, frozen=True):
    """A password that the API gave a user, with the verifier that the cluster got for it."""

    password: str = msgspec.field()
    verifier: str = msgspec.field()

    def __repr__(self) -> str:
        return "Password(...)"

    @property
    def mark(self) -> str:
        """What `Role.password` is while this is the user's password."""
        return hashlib.sha256(self.verifier.encode()).hexdigest()[:16]


class Cluster:
    """What requests are checked against; a refusal names what is in the way. `locales`: the host's; empty: unknown."""

    def __init__(
        self,
        status: NodeStatus,
        waiting: Iterable[Task],
        pools: Iterable[Pool],
        admin: str,
        locales: Collection[str] = (),
    ) -> None:
        self.users = {role.name: role.replication for role in status.users}
        self.databases = set(status.databases)
        self._pools = list(pools)
        self._admin = admin
        self._locales = locales
        for task in waiting:
            self.apply(task)

    def apply(self, task: Task) -> None:
        """What the cluster is like after the task."""
        if task.kind == "drop-user":
            self.users.pop(task.name, None)
        elif task.kind == "create-database":
            self.databases.add(task.name)
        elif task.kind == "drop-database":
            self.databases.discard(task.name)
        elif task.kind in ("create-user", "set-replication"):
            self.users[task.name] = task.replication

    def check(self, task: Task) -> None:
        """Raise NotFound, Conflict or Incorrect when the task cannot be carried out."""
        if task.kind == "create-user":
            self._refuse_new("User", task.name, self.users, MOST_USERS)
        elif task.kind == "create-database":
            self._refuse_new("Database", task.name, self.databases, MOST_DATABASES)
            for field, locale in (("lc-collate", task.lc_collate), ("lc-ctype", task.lc_ctype)):
                if self._locales and locale:
                    known_locale(field, locale, self._locales)
        elif task.kind == "drop-database":
            self._check_database(task.name)
        else:
            self._check_user(task)

    def check_pool(self, pool: Pool) -> None:
        """Raise Incorrect when the pool's database or user does not exist, or PgBouncer's files cannot name it."""
        if pool.database not in self.databases:
            raise Incorrect(f"database-name: the service has no database {_shown(pool.database)}")
        if pool.username and pool.username not in self.users:
            raise Incorrect(f"username: the service has no user {_shown(pool.username)}")
        if not pool.database.isprintable():
            raise Incorrect(f"database-name: {_shown(pool.database)} holds control characters; no pool can lead to it")
        if not pool.username.isprintable() or '"' in pool.username:
            raise Incorrect(
                f"username: {_shown(pool.username)} holds control characters or a double quote, so no pool can be for"
                " it alone; leave username out, and it may use the pool as everybody may"
            )

    def _refuse_new(self, what: str, name: str, known: Iterable[str], most: int) -> None:
        names = set(known)
        if name in names:
            raise Conflict(f"{what} {name} already exists")
        if len(names) >= most:
            raise Conflict(f"The service has {len(names)} {what.lower()}s; at most {most} can be made here.")

    def _check_database(self, name: str) -> None:
        if name == DEFAULT_DATABASE:
            raise Conflict(f"Database {name} is the service's default database and cannot be deleted")
        if name not in self.databases or reserved(name):
            raise NotFound(f"Database {_shown(name)} does not exist")
        self._refuse_used("Database", name, [pool.name for pool in self._pools if pool.database == name])

    def _check_user(self, task: Task) -> None:
        if task.name not in self.users or reserved(task.name):
            raise NotFound(f"User {_shown(task.name)} does not exist")
        if task.kind == "drop-user":
            if task.name == self._admin:
                raise Conflict(f"User {task.name} is the service's admin and cannot be deleted")
            self._refuse_used("User", task.name, [pool.name for pool in self._pools if pool.username == task.name])

    def _refuse_used(self, what: str, name: str, pools: list[str]) -> None:
        if pools:
            names = ", ".join(sorted(pools))
            raise Conflict(f"{what} {_shown(name)} is used by connection pools: {names}. Delete them first.")


def _shown(name: str) -> str:
    """A name out of SQL or a path on one line."""
    return name if name.isprintable() else ascii(name)


def revealed(username: str, role: Role | None, known: Iterable[Password]) -> str:
    """The user's password. Raises NotFound when there is no such user, or its password came from elsewhere."""
    if role is None:
        raise NotFound("User does not exist")
    for given in known:
        if role.password == given.mark:
            return given.password
    raise NotFound(
        f"The password of {_shown(username)} is not known here: it was set in SQL, or the user was made there."
        " Reset it to get one that is."
    )
