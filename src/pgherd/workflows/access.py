"""Change a user or a database: `request` accepts one task, `carry_out` has the host do it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from psycopg.rows import DictRow

from pgherd.errors import Conflict, NotFound
from pgherd.model.access import Cluster, Password
from pgherd.model.passwords import verifier
from pgherd.model.service import how_to_start
from pgherd.sealing import seal
from pgherd.spec import NodeStatus, Task
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import NodeFailed, change_specs, clean, pools_of, service_row, wish_of
from pgherd.workflows.run import Run

#: Seconds until a change that did not end is a time-out.
WITHIN = 300


def request(app: App, caller: Caller, operation: UUID, name: str, task: Task, password: str = "") -> UUID:
    """Accept the task if the cluster, as it will be after those that wait, can take it.

    `password` is the one that create-user and set-password give.
    """
    task = msgspec.structs.replace(task, id=str(operation))
    secret = None
    if password:
        secret = app.vault.seal(msgspec.json.encode(Password(password, verifier(password))))

    def check(tx: Transaction) -> UUID:
        row = running_service(tx, caller, name)
        cluster_of(tx, row).check(task)
        service: UUID = row["id"]
        return service

    return accept(app, caller, operation, "access", WITHIN, check, task, secret)


def running_service(tx: Transaction, caller: Caller, name: str) -> DictRow:
    """The service's row, locked. Raises NotFound, or Conflict unless its cluster has been up and shall be."""
    row = created_service(tx, caller, name)
    if row["stopped_at"] is not None:
        raise Conflict(f"The service is stopped. {how_to_start(name)}")
    return row


def created_service(tx: Transaction, caller: Caller, name: str) -> DictRow:
    """The service's row, locked. Raises NotFound, or Conflict unless its cluster has been up."""
    row = tx.row("lock_service", organization_id=caller.organization_id, name=name)
    if row is None:
        raise NotFound("Service does not exist")
    if row["phase"] == "poweroff":
        raise Conflict("The service was not created; delete it and create it again.")
    if row["settled"] is None:
        raise Conflict("The service is still being created; wait until its state is running.")
    return row


def cluster_of(tx: Transaction, row: DictRow) -> Cluster:
    """The service's users and databases as they will be. Raises Conflict before the first observation."""
    node = next((node for node in tx.rows("nodes", service_id=row["id"]) if node["status"]), None)
    if node is None:
        raise Conflict("The service's host has not reported yet; try again in a moment.")
    waiting = [msgspec.convert(found["task"], Task) for found in tx.rows("pending_tasks", service_id=row["id"])]
    status, locales = msgspec.convert(node["status"], NodeStatus), (node["facts"] or {}).get("locales", ())
    return Cluster(status, waiting, pools_of(tx, row["id"]), wish_of(row).admin, locales)


def carry_out(run: Run) -> None:
    """One task, once. The spec loses it again when the operation ends, however it ends (0003)."""
    run.step("change the cluster", have_done)
    run.step("keep the password", settle_secret)


def have_done(run: Run) -> None:
    """The host carried the task out and looked at the cluster afterwards."""
    task, secret = task_of(run)
    with run.app.db.transaction() as tx:
        admin = wish_of(service_row(tx, run)).admin
    if task.kind in ("create-database", "drop-user"):
        task = msgspec.structs.replace(task, owner=admin)

    def with_task(node: DictRow) -> dict[str, Any]:
        given = node["spec"].get("task")
        if given is not None and given["id"] == task.id:
            return {}
        sealed = seal(node["public_key"], secret.verifier) if secret else ""
        return {"task": msgspec.to_builtins(msgspec.structs.replace(task, verifier=sealed))}

    change_specs(run, with_task)
    run.until(task_is_done)


def task_of(run: Run) -> tuple[Task, Password | None]:
    """What the operation asks for, and the password that it gives."""
    with run.app.db.transaction() as tx:
        row = tx.row("task", id=run.operation)
    assert row is not None
    secret = msgspec.json.decode(run.app.vault.open(row["secret"]), type=Password) if row["secret"] else None
    return msgspec.convert(row["task"], Task), secret


def task_is_done(run: Run) -> str | None:
    """None when a host reported the task done. Raises Conflict with the host's reason when it refused."""
    with run.app.db.transaction() as tx:
        nodes = tx.rows("nodes", service_id=run.service)
    for node in nodes:
        status: dict[str, Any] = node["status"] or {}
        result = status.get("task") or {}
        if result.get("id") == str(run.operation):
            if result["state"] == "refused":
                raise Conflict(clean(result["reason"]))
        elif status.get("refused", 0) >= node["generation"]:
            raise NodeFailed(f"Node {node['name']}: {clean(status['reason'])}")
        else:
            return f"{node['name']}: {status.get('reason') or status.get('step') or 'waits for its host'}"
    return None


def settle_secret(run: Run) -> None:
    """The password that the cluster has now is the one to reveal; that of a dropped user is forgotten."""
    with run.transaction() as tx:
        tx.run("keep_secret", operation=run.operation)
        task, _ = task_of(run)
        if task.kind == "drop-user":
            tx.run("forget_secret", service_id=run.service, name=task.name)
