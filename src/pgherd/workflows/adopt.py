"""Adopt a node that the metadata does not know: its service is known again and runs on as it was."""

from __future__ import annotations

from uuid import UUID

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, Fault, NotFound
from pgherd.model.name import service_name
from pgherd.model.plan import PLANS
from pgherd.model.service import Secrets, Wish
from pgherd.sealing import unseal
from pgherd.spec import NodeSpec, Recovered, UnknownNode
from pgherd.store.db import Transaction
from pgherd.store.platform import organization_named
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.create import take_ports
from pgherd.workflows.nodes import ensure_certificates, restart_where_pending, start_nodes
from pgherd.workflows.repositories import adopt_repository
from pgherd.workflows.run import Run

#: Seconds until an adoption that did not end is a time-out; the service is known all the same.
WITHIN = 600


class Moved(msgspec.Struct, frozen=True):
    """The node's spec as its host has it, when its port was given to another service meanwhile."""

    spec: NodeSpec


def request(
    app: App, caller: Caller, operation: UUID, host: str, node: UUID, organization: str, name: str
) -> tuple[UUID, UUID]:
    """Take the service into the metadata; the operation's id and the organization's.

    An empty `organization` or `name`: as the service was known before. Raises NotFound and Conflict.
    """
    with app.db.transaction() as tx:
        found = _unknown(tx, host, node)
        about = found.spec.about
        if about is None:
            raise Conflict(
                "The node is of an older version and does not say what its service is; it cannot be adopted."
            )
        wanted = service_name(name or about.service)
        owner = organization_named(tx, organization or about.organization)
        moved = _port_is_taken(tx, found.spec)
    recovered = _recovered(app, found)

    def insert(tx: Transaction) -> UUID:
        row = _row(tx, host, node)
        _insert(app, tx, row, found, recovered, owner["id"], wanted)
        if found.spec.repository is not None and recovered.cipher:
            adopt_repository(app, tx, UUID(found.spec.service_id), found.spec.repository, recovered.cipher)
        return UUID(found.spec.service_id)

    asks = Caller(owner["id"], owner["name"], caller.key, caller.signature)
    task = Moved(found.spec) if moved else None
    return accept(app, asks, operation, "adopt", WITHIN, insert, task), owner["id"]


def _row(tx: Transaction, host: str, node: UUID) -> DictRow:
    row = tx.row("unknown_node", host=host, node=node)
    if row is None:
        raise NotFound(f"Host {host} reports no unknown node of this id.")
    return row


def _unknown(tx: Transaction, host: str, node: UUID) -> UnknownNode:
    return msgspec.convert(_row(tx, host, node)["report"], UnknownNode)


def _port_is_taken(tx: Transaction, spec: NodeSpec) -> bool:
    others = tx.row("port_block_of_others", first_port=spec.port, service_id=spec.service_id)
    return others is not None or spec.port % 4 != 0


def _recovered(app: App, found: UnknownNode) -> Recovered:
    with app.db.transaction() as tx:
        key = tx.row("recovery_key")
    if key is None or not found.secrets:
        raise Fault("The host did not say what only it knows of the node.", hint="Is its agent of this version?")
    return msgspec.json.decode(unseal(app.vault.open(key["private_key"]), found.secrets), type=Recovered)


def _insert(
    app: App, tx: Transaction, row: DictRow, found: UnknownNode, recovered: Recovered, owner: UUID, name: str
) -> None:
    spec = found.spec
    assert spec.about is not None
    wish = msgspec.convert(spec.about.wish, Wish)
    if wish.plan not in PLANS:
        raise Conflict(f"The service is of the plan {wish.plan}, which does not exist here.")
    service = UUID(spec.service_id)
    if tx.row("lock_organization", id=owner) is None:
        raise NotFound("Organization does not exist.")
    if any(tx.rows("views", organization_id=owner, name=name)):
        raise Conflict("Service name is already taken; adopt it under another name.")
    if tx.row("service_by_id", id=service) is not None:
        raise Conflict("The metadata still has a record of the node's service, which was deleted; forget the node.")
    tx.run("lock_hosts")
    port = take_ports(app, tx, service) if _port_is_taken(tx, spec) else spec.port
    tx.run("take_port_block", first_port=port, service_id=service)
    plan = PLANS[wish.plan]
    inserted = tx.row(
        "insert_service",
        id=service,
        organization_id=owner,
        name=name,
        # What cannot be asked any more is answered with care: it was in use, so it is protected.
        wish=Jsonb(msgspec.to_builtins(msgspec.structs.replace(wish, termination_protection=True))),
        first_port=port,
        memory_bytes=plan.memory_bytes * plan.nodes,
        secrets=app.vault.seal(msgspec.json.encode(Secrets("", recovered.verifier, recovered.tls_key))),
    )
    if inserted is None:
        raise Conflict("Service name is already taken; adopt it under another name.")
    tx.run("settle", id=service, certificate=spec.tls.certificate)
    tx.run(
        "insert_adopted_node",
        id=row["node_id"],
        service_id=service,
        host_id=row["host_id"],
        name=f"{name}-1",
        generation=spec.generation,
        restart=spec.restart,
    )
    for pool in spec.pools:
        tx.run("write_pool", service_id=service, **msgspec.to_builtins(pool))
    tx.run("forget_unknown_node", host_id=row["host_id"], node=row["node_id"])


def carry_out(run: Run) -> None:
    """The host hears of the service again, with as little change as can be."""
    run.step("leave the old port", leave_taken_port)
    run.step("issue certificates", ensure_certificates)
    run.step("start nodes", start_nodes)
    run.step("settle parameters", restart_where_pending)


def leave_taken_port(run: Run) -> None:
    """A server whose port is another's by now is stopped first; it starts again on the new one."""
    with run.transaction() as tx:
        task = tx.row("task", id=run.operation)
        node = tx.rows("nodes", service_id=run.service)[0]
        if task is None or task["task"] is None or (node["spec"] or {}).get("desired") == "running":
            return
        if node["spec"] is None:
            spec = msgspec.to_builtins(msgspec.convert(task["task"], Moved).spec) | {"desired": "stopped", "task": None}
            del spec["generation"]
            tx.run("write_spec", id=node["id"], spec=Jsonb(spec))
            tx.run("wake_hosts", service_id=run.service)
    run.until(_stopped)


def _stopped(run: Run) -> str | None:
    with run.app.db.transaction() as tx:
        node = tx.rows("nodes", service_id=run.service)[0]
    status = node["status"] or {}
    if status.get("generation", -1) >= node["generation"] and status["state"] == "stopped":
        return None
    return f"{node['name']} stops on its old port"
