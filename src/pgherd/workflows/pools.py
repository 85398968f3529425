"""Create, change and delete a connection pool: a wish that PgBouncer serves once the operation succeeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from pgherd.errors import Conflict, NotFound
from pgherd.model.access import Cluster
from pgherd.model.plan import PLANS
from pgherd.model.pool import check_sum
from pgherd.spec import Pool
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.access import cluster_of, running_service
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import NodeFailed, change_specs, nodes_in_force, pools_of, wish_of
from pgherd.workflows.run import Run

#: Seconds until a change that did not end is a time-out.
WITHIN = 300


class PoolChange(msgspec.Struct, frozen=True):
    """What one request sets of a pool; what it leaves out stays as it is."""

    database: str | UnsetType = UNSET
    mode: str | UnsetType = UNSET
    size: int | UnsetType = UNSET
    username: str | UnsetType = UNSET


class Replaced(msgspec.Struct):
    """The operation's note: the pool before and after, so that a refused change can be taken back."""

    name: str
    before: Pool | None = None
    after: Pool | None = None


def create(app: App, caller: Caller, operation: UUID, service: str, pool: Pool) -> UUID:
    """Raises Conflict when the name is taken or the service has not enough connections."""

    def make(known: dict[str, Pool]) -> Pool:
        if pool.name in known:
            raise Conflict(f"Connection pool {pool.name} already exists")
        return pool

    return _replace(app, caller, operation, service, pool.name, make)


def update(app: App, caller: Caller, operation: UUID, service: str, name: str, change: PoolChange) -> UUID:
    """Raises NotFound, or Conflict when the service has not enough connections."""

    def changed(known: dict[str, Pool]) -> Pool:
        sent = {field: value for field, value in msgspec.structs.asdict(change).items() if value is not UNSET}
        return msgspec.structs.replace(_existing(known, name), **sent)

    return _replace(app, caller, operation, service, name, changed)


def delete(app: App, caller: Caller, operation: UUID, service: str, name: str) -> UUID:
    """Raises NotFound."""

    def gone(known: dict[str, Pool]) -> None:
        _existing(known, name)

    return _replace(app, caller, operation, service, name, gone)


def _existing(known: dict[str, Pool], name: str) -> Pool:
    if name not in known:
        raise NotFound("Connection pool does not exist")
    return known[name]


def _replace(
    app: App,
    caller: Caller,
    operation: UUID,
    service: str,
    name: str,
    pick: Callable[[dict[str, Pool]], Pool | None],
) -> UUID:
    note = Replaced(name)

    def write(tx: Transaction) -> UUID:
        row = running_service(tx, caller, service)
        known = {pool.name: pool for pool in pools_of(tx, row["id"])}
        note.before, note.after = known.get(name), pick(known)
        if note.after is not None:
            _check(cluster_of(tx, row), note.after, note.before)
            wish = wish_of(row)
            wanted = (known | {name: note.after}).values()
            if note.before is None or note.after.size > note.before.size:
                check_sum(wanted, wish.pgbouncer_settings, PLANS[wish.plan].max_connections, "size")
        _write(tx, row["id"], name, note.after)
        found: UUID = row["id"]
        return found

    return accept(app, caller, operation, "pools", WITHIN, write, note)


def _check(cluster: Cluster, after: Pool, before: Pool | None) -> None:
    """What the request does not touch may have vanished in SQL without keeping the rest from being changed."""
    if before is None or (after.database, after.username) != (before.database, before.username):
        cluster.check_pool(after)


def _write(tx: Transaction, service: UUID, name: str, pool: Pool | None) -> None:
    if pool is None:
        tx.run("delete_pool", service_id=service, name=name)
    else:
        tx.run("write_pool", service_id=service, **msgspec.structs.asdict(pool))


def carry_out(run: Run) -> None:
    """By a reload of PgBouncer, which cuts no other pool; back again if a host refuses."""
    try:
        run.step("change the pools", apply)
    except NodeFailed as error:
        if run.verdict:
            raise
        run.step("go back", partial(_go_back, error=error))
        run.step("change the pools", apply)


def apply(run: Run) -> None:
    """PgBouncer serves exactly the wished pools."""

    def wished(node: dict[str, Any]) -> dict[str, Any]:
        return {"pools": pools}

    with run.app.db.transaction() as tx:
        pools = msgspec.to_builtins(pools_of(tx, run.service))
    change_specs(run, wished)
    run.until(pools_in_force)


def pools_in_force(run: Run) -> str | None:
    """None when the specs are in force and PgBouncer serves where there are pools. Raises NodeFailed."""
    reason = nodes_in_force(run)
    if reason is not None:
        return reason
    with run.app.db.transaction() as tx:
        nodes = tx.rows("nodes", service_id=run.service)
    for node in nodes:
        if node["spec"] and node["spec"].get("pools") and not node["status"].get("pooler"):
            return f"{node['name']}: PgBouncer does not serve yet"
    return None


def _go_back(run: Run, error: NodeFailed) -> None:
    """The pool is again what it was, unless a later request changed it; the operation will fail with the reason."""
    run.verdict = error.message
    with run.transaction() as tx:
        row = tx.row("task", id=run.operation)
        assert row is not None
        note = msgspec.convert(row["task"], Replaced)
        now = {pool.name: pool for pool in pools_of(tx, run.service)}
        if now.get(note.name) == note.after:
            _write(tx, run.service, note.name, note.before)
        tx.run("set_verdict", id=run.operation, verdict=run.verdict)
