"""Create a service: `request` accepts it, `carry_out` makes it true."""

from __future__ import annotations

from uuid import UUID, uuid4

import msgspec
from msgspec import UNSET
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, NotFound
from pgherd.fleet.placement import choose
from pgherd.model import features
from pgherd.model.passwords import new_password, verifier
from pgherd.model.plan import PLANS
from pgherd.model.service import Change, Secrets, Wish
from pgherd.store.db import Transaction
from pgherd.workflows import forks
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.limits import hosts, refuse_another_service, refuse_more_memory
from pgherd.workflows.nodes import ensure_certificates, restart_where_pending, start_nodes
from pgherd.workflows.repositories import ensure_repository
from pgherd.workflows.run import Run

#: Seconds until a create that did not end is a time-out.
WITHIN = 1800


def request(
    app: App, caller: Caller, operation: UUID, name: str, change: Change, fork: forks.Fork | None = None
) -> UUID:
    """Every dice is thrown here: ids, ports, password, host, default slots. A `fork` takes most from its source."""
    drafted = Wish.draft(change, app.settings.default_version)
    if fork is None:
        features.check(drafted)
    password = new_password() if change.admin_password is UNSET else str(change.admin_password)
    drawn = Secrets(password, verifier(password)).with_monitor()

    def insert(tx: Transaction) -> UUID:
        service, wish, known, source = uuid4(), drafted, drawn, None
        if tx.row("lock_organization", id=caller.organization_id) is None:
            raise NotFound("Organization does not exist.")
        if fork is not None:
            source = forks.find(app, tx, caller, operation, fork, change)
            wish, known = (
                forks.wish_for(source.wish, change, drafted),
                forks.secrets_for(source.secrets, change),
            )
        if any(row["name"] == name for row in tx.rows("views", organization_id=caller.organization_id, name=name)):
            raise Conflict("Service name is already taken")
        memory_bytes = PLANS[wish.plan].memory_bytes * PLANS[wish.plan].nodes
        refuse_another_service(app.settings, tx, caller.organization_id)
        refuse_more_memory(app.settings, tx, caller.organization_id, memory_bytes)
        tx.run("lock_hosts")
        # The source's files, and a repository that is a directory, are where the source is.
        possible = [host for host in hosts(tx) if source is None or host.id == source.host]
        host = choose(possible, wish.version, memory_bytes, app.settings, features.needed(wish))
        features.check(wish, features.Installed.on(host.facts, wish.version))
        tx.row(
            "insert_service",
            id=service,
            organization_id=caller.organization_id,
            name=name,
            wish=Jsonb(msgspec.to_builtins(wish)),
            first_port=take_ports(app, tx, service),
            memory_bytes=memory_bytes,
            secrets=app.vault.seal(msgspec.json.encode(known)),
        )
        ensure_repository(app, tx, service)
        tx.run("insert_node", id=uuid4(), service_id=service, host_id=host.id, name=f"{name}-1")
        if source is not None:
            forks.take_over(tx, source, service, wish)
        return service

    return accept(app, caller, operation, "create", WITHIN if fork is None else forks.WITHIN, insert)


def carry_out(run: Run) -> None:
    """From nothing, or from another service's data, to a URI that answers."""
    run.step("issue certificates", ensure_certificates)
    run.step("start nodes", start_nodes)
    run.step("settle parameters", restart_where_pending)


def take_ports(app: App, tx: Transaction, service: UUID) -> int:
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
