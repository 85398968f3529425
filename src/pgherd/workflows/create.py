"""Create a service: `request` accepts it, `carry_out` makes it true."""

from __future__ import annotations

from uuid import UUID, uuid4

import msgspec
from msgspec import UNSET
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict
from pgherd.fleet.placement import GIB, Host, choose
from pgherd.model.passwords import new_password, verifier
from pgherd.model.plan import PLANS
from pgherd.model.service import Change, Secrets, Wish
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import ensure_certificates, restart_where_pending, start_nodes
from pgherd.workflows.run import Run

#: Seconds until a create that did not end is a time-out.
WITHIN = 1800


def request(app: App, caller: Caller, operation: UUID, name: str, change: Change) -> UUID:
    """Every dice is thrown here: ids, ports, password, host, default slots."""
    wish = Wish.draft(change, app.settings.default_version)
    password = new_password() if change.admin_password is UNSET else str(change.admin_password)
    known = Secrets(password, verifier(password))

    def insert(tx: Transaction) -> UUID:
        service = uuid4()
        memory_bytes = PLANS[wish.plan].memory_bytes * PLANS[wish.plan].nodes
        tx.row("lock_organization", id=caller.organization_id)
        if any(row["name"] == name for row in tx.rows("views", organization_id=caller.organization_id, name=name)):
            raise Conflict("Service name is already taken")
        _refuse_over_limit(app, tx, caller, memory_bytes)
        tx.run("lock_hosts")
        host = choose(_hosts(tx), wish.version, memory_bytes, app.settings)
        tx.row(
            "insert_service",
            id=service,
            organization_id=caller.organization_id,
            name=name,
            wish=Jsonb(msgspec.to_builtins(wish)),
            first_port=_take_ports(app, tx, service),
            memory_bytes=memory_bytes,
            secrets=app.vault.seal(msgspec.json.encode(known)),
        )
        tx.run("insert_node", id=uuid4(), service_id=service, host_id=host.id, name=f"{name}-1")
        return service

    return accept(app, caller, operation, "create", WITHIN, insert)


def carry_out(run: Run) -> None:
    """From nothing to a URI that answers."""
    run.step("issue certificates", ensure_certificates)
    run.step("start nodes", start_nodes)
    run.step("settle parameters", restart_where_pending)


def _hosts(tx: Transaction) -> list[Host]:
    return [
        Host(
            row["id"],
            row["name"],
            row["facts"]["memory_bytes"],
            row["facts"]["versions"],
            row["services"],
            row["memory_promised"],
        )
        for row in tx.rows("hosts")
        if row["facts"]
    ]


def _refuse_over_limit(app: App, tx: Transaction, caller: Caller, memory_bytes: int) -> None:
    use = tx.row("organization_use", id=caller.organization_id)
    assert use is not None
    most = app.settings.services_per_organization
    if use["services"] >= most:
        raise Conflict(
            f"The organization already has {use['services']} of at most {most} services"
            " (setting services_per_organization). Delete one first."
        )
    limit = app.settings.organization_memory_gib * GIB
    if limit and use["memory_bytes"] + memory_bytes > limit:
        raise Conflict(
            f"The plan's {memory_bytes / GIB:.0f} GiB do not fit: the organization's plans already take"
            f" {use['memory_bytes'] / GIB:.0f} of {limit / GIB:.0f} GiB (setting organization_memory_gib)."
        )


def _take_ports(app: App, tx: Transaction, service: UUID) -> int:
    """A free block of four ports. The hosts are locked, so no other create draws meanwhile."""
    first, last = app.settings.port_range
    rest = app.settings.port_rest_seconds
    row = tx.row("free_port_block", first=-(-first // 4) * 4, last=last, rest=rest)
    if row is None:
        raise Conflict(
            f"No free ports: every block of {first}-{last} is taken or rests for {rest} s after a delete"
            " (settings service_ports, port_rest_seconds)."
        )
    port: int = row["first_port"]
    tx.run("take_port_block", first_port=port, service_id=service)
    return port
