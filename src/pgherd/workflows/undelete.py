"""Bring a deleted service back from its repository, as long as that is kept."""

from __future__ import annotations

from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, NotFound
from pgherd.model.origin import Origin
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.app import App, Caller
from pgherd.workflows.create import take_ports
from pgherd.workflows.limits import refuse_another_service, refuse_full_hosts, refuse_more_memory
from pgherd.workflows.nodes import ensure_certificates, restart_where_pending, start_nodes
from pgherd.workflows.run import Run

#: Seconds until an undelete that did not end is a time-out; large services take hours.
WITHIN = 6 * 3600


def request(app: App, caller: Caller, operation: UUID, name: str) -> UUID:
    """The one of this name that was deleted last gets its name back, and new ports."""

    def revive(tx: Transaction) -> UUID:
        tx.row("lock_organization", id=caller.organization_id)
        row = tx.row("lock_kept_service", organization_id=caller.organization_id, name=name)
        if row is None:
            raise NotFound("No deleted service of this name is kept")
        if tx.rows("views", organization_id=caller.organization_id, name=name):
            raise Conflict(f"Service name is already taken: delete or fork the present {name} first.")
        refuse_another_service(app.settings, tx, caller.organization_id)
        refuse_more_memory(app.settings, tx, caller.organization_id, row["memory_bytes"])
        tx.run("lock_hosts")
        refuse_full_hosts(app.settings, tx, row["id"], row["memory_bytes"])
        service: UUID = row["id"]
        tx.rows("end_others", service_id=service, id=operation, message="The service was brought back.")
        origin = Origin(str(operation), "return", str(service))
        tx.run("release_port_block", service_id=service)
        tx.run("revive_service", id=service, first_port=take_ports(app, tx, service))
        tx.run("set_origin", id=service, origin=Jsonb(msgspec.to_builtins(origin)))
        return service

    return accept(app, caller, operation, "undelete", WITHIN, revive)


def carry_out(run: Run) -> None:
    """As a create, but from what was archived last."""
    run.step("issue certificates", ensure_certificates)
    run.step("start nodes", start_nodes)
    run.step("settle parameters", restart_where_pending)
