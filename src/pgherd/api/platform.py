"""`/pgherd/v1`: organizations, API keys, hosts and the instance itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

from pgherd.api import unknown_nodes
from pgherd.api.request import Handler, Request
from pgherd.api.roles import check_administrator
from pgherd.contract.document import platform_document
from pgherd.errors import Forbidden, NotFound
from pgherd.model.name import organization_name
from pgherd.settings import Settings
from pgherd.store.keys import Key

Row = dict[str, Any]


class PlatformStore(Protocol):
    """What the handlers need of the metadata."""

    async def organizations(self) -> Sequence[Row]:
        """id, name, created_at, services of each."""

    async def create_organization(self, name: str) -> Row:
        """The new one. Raises Conflict when the name is taken."""

    async def delete_organization(self, name: str) -> None:
        """Raises NotFound, or Conflict while it has services."""

    async def keys(self, organization: str | None) -> Sequence[Row]:
        """key, name, role, organization, created_at, revoked_at of all keys or of one organization's."""

    async def create_key(self, organization: str, name: str, role: str) -> tuple[str, str]:
        """A new key and its secret. Raises NotFound when there is no such organization."""

    async def revoke_key(self, key: str, organization: str | None = None) -> None:
        """Raises NotFound when there is no such valid key (of this organization)."""

    async def hosts(self) -> Sequence[Row]:
        """id, name, facts, seen_at, services, memory_promised, unknown (nodes) of each."""


class Platform:
    """The handlers of one API process."""

    def __init__(self, settings: Settings, store: PlatformStore) -> None:
        self._settings, self._store = settings, store
        self._document = platform_document()

    def handlers(self) -> dict[str, Handler]:
        """operationId -> handler."""
        return {
            "get-platform-openapi": self._get_document,
            "get-instance": self._get_instance,
            "list-organizations": self._list_organizations,
            "create-organization": self._create_organization,
            "delete-organization": self._delete_organization,
            "list-api-keys": self._list_keys,
            "create-api-key": self._create_key,
            "revoke-api-key": self._revoke_key,
            "list-hosts": self._list_hosts,
        }

    async def _get_document(self, request: Request) -> object:
        return self._document

    async def _get_instance(self, request: Request) -> object:
        _operators_only(request.key)
        organizations = await self._store.organizations()
        return {
            "version": version("pgherd"),
            "zone": self._settings.zone,
            "api-endpoint": self._settings.api_url,
            "organizations": len(organizations),
            "services": sum(row["services"] for row in organizations),
            "hosts": len(await self._store.hosts()),
        }

    async def _list_organizations(self, request: Request) -> object:
        _operators_only(request.key)
        return {"organizations": [_shown(row) for row in await self._store.organizations()]}

    async def _create_organization(self, request: Request) -> object:
        _operators_only(request.key)
        row = await self._store.create_organization(organization_name(request.body["name"]))
        return _shown({name: row[name] for name in ("id", "name", "created_at")} | {"services": 0})

    async def _delete_organization(self, request: Request) -> object:
        _operators_only(request.key)
        await self._store.delete_organization(request.params["name"])
        return {"message": "The organization and its keys are deleted."}

    async def _list_keys(self, request: Request) -> object:
        return {"api-keys": [_shown(row) for row in await self._store.keys(_realm(request.key))]}

    async def _create_key(self, request: Request) -> object:
        own, body = _realm(request.key), request.body
        organization, role = body.get("organization", request.key.organization), body.get("role", "admin")
        if own is not None and organization != own:
            raise NotFound("Organization does not exist.")
        if own is not None and role == "operator":
            raise Forbidden("Only an operator makes keys of role operator.")
        key, secret = await self._store.create_key(organization, body["name"], role)
        return {"key": key, "secret": secret, "name": body["name"], "organization": organization, "role": role}

    async def _revoke_key(self, request: Request) -> object:
        await self._store.revoke_key(request.params["key"], _realm(request.key))
        return {"message": "The key is revoked."}

    async def _list_hosts(self, request: Request) -> object:
        _operators_only(request.key)
        return {"hosts": [_host(row) for row in await self._store.hosts()]}


def _operators_only(key: Key) -> None:
    if key.role != "operator":
        raise Forbidden("Only a key of role operator may do this.")


def _realm(key: Key) -> str | None:
    """Whose keys the caller may see and change: None for all."""
    if key.role == "operator":
        return None
    check_administrator(key.role)
    return key.organization


def _shown(row: Row) -> dict[str, Any]:
    """A row in wire names, without what is null; times in UTC."""
    return {name.replace("_", "-"): _value(value) for name, value in row.items() if value is not None}


def _value(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _host(row: Row) -> dict[str, Any]:
    facts = row["facts"] or {}
    known = {"memory_bytes": "memory", "cores": "cores", "versions": "versions", "extensions": "extensions"}
    shown = _shown({name: row[name] for name in ("id", "name", "seen_at", "services", "memory_promised")})
    shown |= {ours: facts[name] for name, ours in known.items() if name in facts}
    return shown | {"unknown-nodes": [unknown_nodes.shown(node) for node in row["unknown"]]}
