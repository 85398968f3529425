"""Single changes of a cluster's roles and databases, each carried out once: what to look at first, and in which order.

What was there before another's change of the same name must be told from what our own first run made: before it creates
anything, the task's id is noted as `begun`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pgherd.drivers import postgres
from pgherd.drivers import postgres_access as access
from pgherd.drivers.postgres import Cluster, SqlRefused
from pgherd.errors import HostFault
from pgherd.spec import Task, TaskResult

_SECONDS = 90.0  # for one database's part
_MOST_NAME = 63  # bytes; PostgreSQL would cut what is longer


class Found(msgspec.Struct, frozen=True):
    """What there is of the task's name. `databases` are all that can be connected to.

    `cannot_pass_on`: what the role has that nobody else can be given.
    """

    role: bool
    superuser: bool
    database: bool
    template: bool
    databases: list[str]
    cannot_pass_on: list[str]


class _No(Exception):
    """The task is refused, with words for the tenant."""


@dataclass(frozen=True)
class Execution:
    """One task in one cluster. `begin` notes that a creation begins; `begun`: that was noted by an earlier run."""

    cluster: Cluster
    task: Task
    admin: str
    unseal: Callable[[str], str]
    begin: Callable[[], None]
    begun: bool

    def carry_out(self) -> TaskResult:
        """Do it. Raises HostFault when it may succeed later."""
        kinds: dict[str, Callable[[Found], None]] = {
            "create-user": self._create_user,
            "drop-user": self._drop_user,
            "set-password": self._set_password,
            "set-replication": self._set_replication,
            "create-database": self._create_database,
            "drop-database": self._drop_database,
        }
        try:
            self._check_name()
            kinds[self.task.kind](self._look())
        except _No as error:
            return TaskResult(self.task.id, "refused", str(error))
        except SqlRefused as error:
            if access.is_transient(error.code):
                raise
            return TaskResult(self.task.id, "refused", f"PostgreSQL refuses it: {error.words}")
        return TaskResult(self.task.id, "done")

    # --- the kinds -----------------------------------------------------------------------------------------

    def _create_user(self, found: Found) -> None:
        name, major = self.task.name, int(self.cluster.program.major)
        verifier = self.unseal(self.task.verifier)
        if self._is_ours(found.role, f"User {name} already exists."):
            return
        creating = access.creating_user(
            name, verifier, replication=self.task.replication, admin=self.admin, major=major
        )
        self._run(creating)

    def _drop_user(self, found: Found) -> None:
        name, owner = self.task.name, self.task.owner or self.admin
        if name == self.admin:
            raise _No(f"User {name} is the service's admin and cannot be deleted.")
        if not found.role:
            return
        self._refuse_superuser(found)
        if found.cannot_pass_on:
            raise _No(
                f"User {name} has {_listed(found.cannot_pass_on)}, which cannot pass to {owner}. Drop that first."
            )
        self._run(access.shutting_out(name))
        where = ""
        try:
            for where in found.databases:
                self._run(access.passing_on(name, owner), where)
            where = ""
            self._run(access.dropping_user(name))
        except SqlRefused as error:
            if access.is_held_up(error.code):
                self._run(access.letting_in(name))
                place = f" in database {where}" if where else ""
                raise _No(
                    f"What user {name} owns{place} is in use by transactions of others, or is too much for a minute."
                    " End them, or wait for their end, and try again."
                ) from None
            if not access.is_transient(error.code):
                self._run(access.letting_in(name))
            raise

    def _set_password(self, found: Found) -> None:
        self._must_exist(found)
        self._run(access.setting_password(self.task.name, self.unseal(self.task.verifier)))

    def _set_replication(self, found: Found) -> None:
        self._must_exist(found)
        self._run(access.setting_replication(self.task.name, self.task.replication))

    def _create_database(self, found: Found) -> None:
        task, owner = self.task, self.task.owner or self.admin
        for locale in (task.lc_collate, task.lc_ctype):
            if len(locale) > 128 or not re.fullmatch(r"[A-Za-z0-9_.@=-]*", locale):
                raise _No(f"Locale {locale[:128]!r} is not known here.")
        if not self._is_ours(found.database, f"Database {task.name} already exists."):
            try:
                self._run(access.creating_database(task.name, owner, task.lc_collate, task.lc_ctype))
            except SqlRefused as error:
                if error.code == "42809":
                    unknown = " or ".join(repr(word) for word in (task.lc_collate, task.lc_ctype) if word)
                    raise _No(f"Locale {unknown} is not known here or is not one for UTF-8.") from None
                raise
        if int(self.cluster.program.major) < 15:
            self._run(access.owning_public(owner), task.name)

    def _drop_database(self, found: Found) -> None:
        if found.template:
            raise _No(f"Database {self.task.name} is a template.")
        if found.database:
            self._run(access.dropping_database(self.task.name))

    # --- what they share -----------------------------------------------------------------------------------

    def _check_name(self) -> None:
        name, database = self.task.name, self.task.kind.endswith("-database")
        what = "Database" if database else "User"
        if len(name.encode()) > _MOST_NAME or not name.isprintable():
            raise _No(f"{what} names have at most {_MOST_NAME} bytes and no control characters.")
        if access.is_reserved_database(name) if database else access.is_reserved_role(name):
            raise _No(f"{what} {name} belongs to the platform.")

    def _look(self) -> Found:
        name = self.task.name
        text = postgres.psql(self.cluster, access.looking(name, name), options=access.OPTIONS)
        try:
            return msgspec.json.decode(text.strip().rsplit("\n", 1)[-1], type=Found)
        except msgspec.MsgspecError as error:
            raise HostFault("A service's PostgreSQL gives a wrong answer.", detail=str(error)[:200]) from None

    def _run(self, script: str, database: str = "postgres") -> None:
        postgres.psql(self.cluster, script, database=database, options=access.OPTIONS, timeout=_SECONDS)

    def _is_ours(self, exists: bool, refusal: str) -> bool:
        """Whether an earlier run of this very task has made it; notes that it is made now when it is not there."""
        if exists and not self.begun:
            raise _No(refusal)
        if not exists and not self.begun:
            self.begin()
        return exists

    def _must_exist(self, found: Found) -> None:
        if not found.role:
            raise _No(f"User {self.task.name} does not exist.")
        self._refuse_superuser(found)

    def _refuse_superuser(self, found: Found) -> None:
        if found.superuser:
            raise _No(f"User {self.task.name} belongs to the platform.")


def _listed(things: list[str], most: int = 5) -> str:
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" if len(things) > most else "")
