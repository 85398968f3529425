"""What the roles of API keys may do.

`operator` and `admin` may do everything that the contract offers, in their own organization; what an
admin may do of `/pgherd/v1` is decided there. `read-only` may do what is listed here: it reads, logs and
metrics too, and reveals no secret.
"""

from __future__ import annotations

from pgherd.errors import Forbidden

#: Operations without a signature; the real clients send none with list-zones.
PUBLIC = frozenset({"list-zones", "get-platform-openapi"})

READ_ONLY = frozenset(
    {
        "get-dbaas-ca-certificate",
        "get-dbaas-integration",
        "get-dbaas-migration-status",
        "get-dbaas-service-logs",
        "get-dbaas-service-metrics",
        "get-dbaas-service-pg",
        "get-dbaas-service-type",
        "get-dbaas-settings-pg",
        "get-dbaas-task",
        "get-operation",
        "list-backups",
        "list-dbaas-integration-settings",
        "list-dbaas-integration-types",
        "list-dbaas-service-types",
        "list-dbaas-services",
        "list-zones",
    }
)


def check(role: str, operation_id: str) -> None:
    """Raise Forbidden, in the hosted service's words, when the role may not do this."""
    if role == "read-only" and operation_id not in READ_ONLY:
        raise Forbidden("Forbidden by role policy for dbaas - A deny rule matched. Rule index: 0")


def check_administrator(role: str) -> None:
    """Raise Forbidden unless the role looks after an organization's keys."""
    if role not in ("operator", "admin"):
        raise Forbidden("Only a key of role operator or admin may do this.")
