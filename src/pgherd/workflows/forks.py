"""A new service made from another one's data: what it takes over, and what is refused at once."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import msgspec
from msgspec import UNSET
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, Incorrect, NotFound
from pgherd.fleet.placement import GIB
from pgherd.model import features
from pgherd.model.access import Password
from pgherd.model.moment import check_moment, written
from pgherd.model.origin import Branch, Origin, timeline_at
from pgherd.model.passwords import verifier
from pgherd.model.plan import PLANS
from pgherd.model.pool import check_sum
from pgherd.model.service import Change, Secrets, Wish
from pgherd.spec import NodeStatus, Verification, Window
from pgherd.store.db import Transaction
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import pools_of

#: Seconds until a fork that did not end is a time-out; large services take hours.
WITHIN = 6 * 3600


class Fork(msgspec.Struct, frozen=True):
    """What a create request asks for: the source's name, and the time whose data it wants (None: now)."""

    source: str
    moment: datetime | None = None


class Source(msgspec.Struct, frozen=True):
    """The service that is forked, as it is when the request is accepted. `host`: where its node is."""

    id: UUID
    host: UUID
    wish: Wish
    origin: Origin
    secrets: Secrets


def find(app: App, tx: Transaction, caller: Caller, operation: UUID, fork: Fork, change: Change) -> Source:
    """The source, locked. Raises what speaks against the fork."""
    row = tx.row("lock_service", organization_id=caller.organization_id, name=fork.source)
    if row is None:
        raise NotFound("Service does not exist")
    if row["settled"] is None:
        raise Conflict(f"fork-from-service: {fork.source} has never run; wait until its state is running.")
    wish = msgspec.convert(row["settled"], Wish)
    _check_change(wish, change)
    node = tx.rows("nodes", service_id=row["id"])[0]
    status = msgspec.convert(node["status"] or {}, NodeStatus) if node["status"] else None
    field = "recovery-backup-time" if fork.moment else "fork-from-service"
    check_status(fork.moment, status, field, broken_of(tx, row["id"]))
    _check_disk(str(change.plan), status.disk_used if status else 0)
    origin = Origin(
        str(operation), "fork", str(row["id"]), written(fork.moment) if fork.moment else "",
        timeline_of(tx, row["id"], fork.moment),
    )  # fmt: skip
    return Source(row["id"], node["host_id"], wish, origin, _secrets(app, tx, row, wish.admin))


def check_status(moment: datetime | None, status: NodeStatus | None, field: str, broken: list[Window]) -> None:
    """Raise Incorrect or Conflict when the host's last observation or the last proof (`broken`) knows that the data of
    `moment` cannot be had."""
    lives, known = status is not None and status.state == "running", status.repository if status else None
    check_moment(moment, known, field, lives=lives, now=datetime.now(UTC), broken=broken)


def broken_of(tx: Transaction, service: UUID) -> list[Window]:
    """The times that cannot be restored as the service's last proof found."""
    row = tx.row("last_verification", service_id=service)
    return msgspec.convert(row["report"] or {}, Verification).broken if row else []


def timeline_of(tx: Transaction, service: UUID, moment: datetime | None) -> int:
    """The timeline that the service was on at that moment; 0: the newest."""
    branches = [
        Branch(row["at"], row["timeline"], row["left_timeline"]) for row in tx.rows("branches", service_id=service)
    ]
    return timeline_at(branches, moment) if moment else 0


def wish_for(source: Wish, change: Change, drafted: Wish) -> Wish:
    """The source's settings under what the request sets; with the slots of `drafted`, and without its protection."""
    taken = msgspec.structs.replace(
        source,
        plan=drafted.plan,
        maintenance=drafted.maintenance,
        backup=drafted.backup,
        termination_protection=False,
    )
    new = taken.changed(change)
    features.check_variant(source, new)
    features.check(new)
    return new


def secrets_for(source: Secrets, change: Change) -> Secrets:
    """The admin's password: the source's, unless the request gives one."""
    if change.admin_password is UNSET:
        return source.with_monitor()
    password = str(change.admin_password)
    return Secrets(password, verifier(password)).with_monitor()


def take_over(tx: Transaction, source: Source, service: UUID, wish: Wish) -> None:
    """Pools and known passwords of the users; the admin's is the service's own."""
    check_sum(pools_of(tx, source.id), wish.pgbouncer_settings, PLANS[wish.plan].max_connections, "plan")
    tx.run("set_origin", id=service, origin=Jsonb(msgspec.to_builtins(source.origin)))
    tx.run("copy_pools", source=source.id, service_id=service)
    tx.run("copy_secrets", source=source.id, service_id=service, admin=wish.admin)


def _check_change(source: Wish, change: Change) -> None:
    if change.version is not UNSET and change.version != source.version:
        raise Incorrect(
            f"version: a fork keeps its source's PostgreSQL {source.version}; leave the field out"
            f" or send {source.version}."
        )
    if change.admin_username is not UNSET and change.admin_username != source.admin:
        raise Incorrect(f"admin-username: a fork keeps its source's admin {source.admin}; leave the field out.")


def _check_disk(plan: str, used: int) -> None:
    """The plan's disk holds 125 % of the source's data, as the hosted service demands."""
    disk = PLANS[plan].disk_bytes
    if used * 125 > disk * 100:
        raise Conflict(
            f"plan: {plan} has {disk / GIB:.0f} GiB of disk, but the source uses {used / GIB:.1f} GiB and a plan must"
            " hold 125 % of that."
        )


def _secrets(app: App, tx: Transaction, row: DictRow, admin: str) -> Secrets:
    """The admin's password as the API gave it last."""
    first = msgspec.json.decode(app.vault.open(row["secrets"]), type=Secrets)
    given = tx.row("secret_of_user", service_id=row["id"], name=admin)
    if given is None:
        return Secrets(first.password, first.verifier)
    later = msgspec.json.decode(app.vault.open(given["secret"]), type=Password)
    return Secrets(later.password, later.verifier)
