"""The operations of the contract that are not available yet, in one table, and how the README shows them.

A refusal is a 4xx: a 5xx would be sent again and again by the Go clients. The table shrinks to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pgherd.contract.document import Contract, Route

_UPGRADES = "with major upgrades"
_REPLICAS = "with read replicas and migrations"

#: operationId -> when it comes.
COMING: Mapping[str, str] = {
    "create-dbaas-pg-upgrade-check": _UPGRADES,
    "get-dbaas-task": _UPGRADES,
    "stop-dbaas-pg-migration": _REPLICAS,
    "get-dbaas-migration-status": _REPLICAS,
    "create-dbaas-task-migration-check": _REPLICAS,
    "create-dbaas-integration": _REPLICAS,
    "get-dbaas-integration": _REPLICAS,
    "update-dbaas-integration": _REPLICAS,
    "delete-dbaas-integration": _REPLICAS,
    "list-dbaas-integration-types": _REPLICAS,
    "list-dbaas-integration-settings": _REPLICAS,
}

_SERVED = "served"
_OF_POSTGRES = re.compile(
    r"/v2/(dbaas-postgres|dbaas-service|dbaas-service-(type|logs|metrics)|dbaas-task|dbaas-task-migration-check"
    r"|dbaas-migration-status|dbaas-integration|dbaas-integration-(types|settings)|dbaas-settings-pg"
    r"|dbaas-ca-certificate|zone|operation)(/|$)"
)


def concerns_postgres(route: Route) -> bool:
    """Whether the operation is one of those that pgherd serves or will serve."""
    return _OF_POSTGRES.match(route.path) is not None


def refusals(contract: Contract) -> dict[str, str]:
    """operationId -> the message that refuses it, for every operation of the contract that is not served."""
    return {
        name: _refusal(name, route)
        for name, route in contract.routes.items()
        if name in COMING or not concerns_postgres(route)
    }


def _refusal(name: str, route: Route) -> str:
    if name in COMING:
        return f"{name} is not available yet: it comes {COMING[name]}."
    if "-external-" in name or route.path.startswith("/v2/dbaas-external-"):
        return f"{name} is not available: this instance has no external endpoints."
    return f"{name} is not available: this instance offers services of type pg only."


def table(contract: Contract) -> str:
    """The README's table of operations in Markdown, in the order of paths."""
    order = {"GET": 0, "POST": 1, "PUT": 2, "DELETE": 3}
    shown = sorted(filter(concerns_postgres, contract.routes.values()), key=lambda r: (r.path, order[r.method]))
    rows = [
        f"| `{route.operation_id}` | `{route.method} {route.path}` | "
        f"{'comes ' + COMING[route.operation_id] if route.operation_id in COMING else _SERVED} |"
        for route in shown
    ]
    return "\n".join(["| operation | call | status |", "|---|---|---|", *rows])
