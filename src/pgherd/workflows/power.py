"""Stop a service and start it again, each because its organization asked for it.

The wish to be stopped is `service.stopped_at`. The phase is another matter: it says whether the service was created.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg.rows import DictRow

from pgherd.errors import Forbidden
from pgherd.store.db import Transaction
from pgherd.workflows.accept import accept
from pgherd.workflows.access import created_service
from pgherd.workflows.app import App, Caller
from pgherd.workflows.nodes import change_specs, nodes_in_force, service_row, wish_of
from pgherd.workflows.run import Run

#: Seconds until a stop or a start that did not end is a time-out.
WITHIN = 600


def request(app: App, caller: Caller, operation: UUID, name: str, *, stop: bool) -> UUID:
    """Stop or start; one that is so already ends in success at once."""

    def wish(tx: Transaction) -> UUID:
        row = created_service(tx, caller, name)
        if stop and wish_of(row).termination_protection:
            raise Forbidden(
                "Service is protected against termination and shutdown. Remove termination protection first."
            )
        tx.run("set_power", id=row["id"], stop=stop)
        service: UUID = row["id"]
        return service

    return accept(app, caller, operation, "power", WITHIN, wish)


def carry_out(run: Run) -> None:
    """What is wished for by now counts: a stop that a start has followed does nothing."""
    run.step("stop or start nodes", apply)


def apply(run: Run) -> None:
    """Every node is stopped, or runs."""
    with run.app.db.transaction() as tx:
        desired = "running" if service_row(tx, run)["stopped_at"] is None else "stopped"

    def wished(node: DictRow) -> dict[str, Any]:
        return {"desired": desired}

    change_specs(run, wished, of=("running", "stopped"))
    run.until(nodes_in_force)
