"""Shell completion of values. The API is asked; where it does not answer, nothing is completed."""

from __future__ import annotations

from typing import Any

from pgherd.cli.outcome import CliError


def services(incomplete: str) -> list[str]:
    """Names of services that begin so."""
    found = _ask("list-dbaas-services", "dbaas-services")
    return [service["name"] for service in found if _begins(service, incomplete)]


def plans(incomplete: str) -> list[str]:
    """Names of plans that begin so."""
    return [plan["name"] for plan in _type("plans") if plan.get("authorized", True) and _begins(plan, incomplete)]


def versions(incomplete: str) -> list[str]:
    """PostgreSQL majors that begin so."""
    return [str(version) for version in _type("available-versions") if str(version).startswith(incomplete)]


def _begins(thing: dict[str, str], incomplete: str) -> bool:
    return str(thing.get("name", "")).startswith(incomplete)


def _type(field: str) -> list[Any]:
    return _ask("get-dbaas-service-type", field, "pg")


def _ask(operation_id: str, field: str, *path: str) -> list[Any]:
    from pgherd.cli.client import connect

    try:
        return list(connect(patient=False).call(operation_id, *path).get(field) or [])
    except CliError:
        return []
