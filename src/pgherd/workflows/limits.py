"""What organizations and hosts may be promised; a request beyond it is refused with the numbers.

The caller holds the organization and, for hosts, all hosts, so that two requests do not both take the last of it.
"""

from __future__ import annotations

from uuid import UUID

from pgherd.errors import Conflict
from pgherd.fleet.placement import GIB, Host, fits, full
from pgherd.settings import Settings
from pgherd.store.db import Transaction


def hosts(tx: Transaction) -> list[Host]:
    """The hosts that have registered, with what they are promised."""
    return [
        Host(
            row["id"],
            row["name"],
            row["facts"]["memory_bytes"],
            row["facts"]["versions"],
            row["services"],
            row["memory_promised"],
            row["facts"],
        )
        for row in tx.rows("hosts")
        if row["facts"]
    ]


def refuse_another_service(settings: Settings, tx: Transaction, organization: UUID) -> None:
    """Raise Conflict when the organization has all the services that it may have."""
    use, most = _use(tx, organization), settings.services_per_organization
    if use["services"] >= most:
        raise Conflict(
            f"The organization already has {use['services']} of at most {most} services"
            " (setting services_per_organization). Delete one first."
        )


def refuse_more_memory(settings: Settings, tx: Transaction, organization: UUID, more: int) -> None:
    """Raise Conflict when the organization's plans would take more memory than they may; `more` in bytes."""
    use, limit = _use(tx, organization), settings.organization_memory_gib * GIB
    if limit and use["memory_bytes"] + more > limit:
        raise Conflict(
            f"{more / GIB:.0f} GiB more do not fit: the organization's plans already take"
            f" {use['memory_bytes'] / GIB:.0f} of {limit / GIB:.0f} GiB (setting organization_memory_gib)."
        )


def refuse_full_hosts(settings: Settings, tx: Transaction, service: UUID, more: int) -> None:
    """Raise Conflict when a host of the service may not be promised `more` bytes."""
    own = {node["host_id"] for node in tx.rows("nodes", service_id=service)}
    for host in hosts(tx):
        if host.id in own and not fits(host, more, settings):
            raise full(host, more, settings)


def _use(tx: Transaction, organization: UUID) -> dict[str, int]:
    use = tx.row("organization_use", id=organization)
    assert use is not None
    return use
