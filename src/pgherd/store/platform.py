"""Organizations and API keys."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import anyio.to_thread
from psycopg.rows import DictRow

from pgherd.errors import Conflict, Forbidden, Incorrect, NotFound
from pgherd.model.certificates import new_authority
from pgherd.store.db import Db, Transaction
from pgherd.store.events import leave_event
from pgherd.store.vault import Vault

ROLES = ("operator", "admin", "read-only")


def organization_named(tx: Transaction, name: str) -> DictRow:
    """The organization's row. Raises NotFound."""
    row = tx.row("organization_by_name", name=name)
    if row is None:
        raise NotFound("Organization does not exist.")
    return row


class Organizations:
    """What `pgherd org` and `pgherd key` do; synchronous."""

    def __init__(self, db: Db, vault: Vault) -> None:
        self._db = db
        self._vault = vault

    def all(self) -> list[DictRow]:
        """id, name, created_at and the number of services of each."""
        with self._db.transaction() as tx:
            return tx.rows("organizations")

    def create(self, name: str) -> DictRow:
        """A new organization with a CA of its own. Raises Conflict when the name is taken."""
        certificate, key = new_authority(name)
        with self._db.transaction() as tx:
            made = tx.row(
                "insert_organization",
                id=uuid4(),
                name=name,
                ca_certificate=certificate,
                ca_key=self._vault.seal(key.encode()),
            )
            if made is None:
                raise Conflict("Organization name is already taken.")
            return organization_named(tx, name)

    def delete(self, name: str) -> None:
        """Remove it with its keys. Raises Conflict while it has services or is the operator's own."""
        with self._db.transaction() as tx:
            row = organization_named(tx, name)
            tx.row("lock_organization", id=row["id"])
            if any(k["role"] == "operator" and not k["revoked_at"] for k in tx.rows("keys", organization_id=row["id"])):
                raise Conflict("This organization holds an operator key; revoke it before deleting the organization.")
            if tx.row("delete_organization", id=row["id"]) is None:
                raise Conflict(
                    "The organization still has services, or backups of deleted ones that are kept for a while;"
                    " delete them first and wait until they are gone."
                )
            tx.run("notify_keys")

    def keys(self, organization: str | None) -> list[DictRow]:
        """The keys of one organization or of all, without their secrets."""
        with self._db.transaction() as tx:
            wanted = organization_named(tx, organization)["id"] if organization else None
            return tx.rows("keys", organization_id=wanted)

    def create_key(self, organization: str, name: str, role: str) -> tuple[str, str]:
        """A new key and its secret, which is not shown again."""
        if role not in ROLES:
            raise Incorrect(f"role: must be one of {', '.join(ROLES)}.")
        with self._db.transaction() as tx:
            return self._insert_key(tx, organization, name, role)

    def create_operator_key(self) -> tuple[str, str]:
        """The key of who operates the machine and its secret; with its event, as no call of the API asks for it."""
        with self._db.transaction() as tx:
            key, secret = self._insert_key(tx, "default", "operator", "operator")
            leave_event(tx, "create-api-key", f"operator/default/operator/{key}")
        return key, secret

    def _insert_key(self, tx: Transaction, organization: str, name: str, role: str) -> tuple[str, str]:
        key, secret = "EXO" + secrets.token_hex(12), secrets.token_urlsafe(32)
        row = organization_named(tx, organization)
        sealed = self._vault.seal(secret.encode())
        tx.run("insert_key", key=key, organization_id=row["id"], name=name, role=role, secret=sealed)
        return key, secret

    def revoke_key(self, key: str, organization: str | None) -> None:
        """From now on the key is refused. `organization` limits an admin to its own keys; None: an operator asks.

        Raises NotFound when there is no such valid key, Forbidden when an admin may not revoke it.
        """
        with self._db.transaction() as tx:
            wanted = organization_named(tx, organization)["id"] if organization else None
            row = tx.row("revoke_key", key=key, organization_id=wanted)
            if row is None:
                raise NotFound("API key does not exist.")
            if row["role"] == "operator" and organization is not None:
                raise Forbidden("Only an operator revokes keys of role operator.")
            left = [k for k in tx.rows("keys", organization_id=None) if k["role"] == "operator" and not k["revoked_at"]]
            if row["role"] == "operator" and not left:
                raise Conflict("This is the last operator key; create another one before you revoke it.")
            tx.run("notify_keys")

    def hosts(self) -> list[DictRow]:
        """The hosts of the zone with what they said of themselves and the nodes there that are not known here."""
        with self._db.transaction() as tx:
            unknown = tx.rows("unknown_nodes")
            return [h | {"unknown": [n for n in unknown if n["host"] == h["name"]]} for h in tx.rows("hosts")]


class PlatformStore:
    """The same for the API's handlers: each call in a thread. `forget` empties the cache of keys.

    This process forgets a revoked key before it answers; others do at the notification.
    """

    def __init__(self, organizations: Organizations, forget: Callable[[], None]) -> None:
        self._sync = organizations
        self._forget = forget

    async def organizations(self) -> list[dict[str, Any]]:
        """See Organizations.all."""
        return await anyio.to_thread.run_sync(self._sync.all)

    async def create_organization(self, name: str) -> dict[str, Any]:
        """See Organizations.create."""
        return await anyio.to_thread.run_sync(self._sync.create, name)

    async def delete_organization(self, name: str) -> None:
        """See Organizations.delete."""
        await anyio.to_thread.run_sync(self._sync.delete, name)
        self._forget()

    async def keys(self, organization: str | None) -> list[dict[str, Any]]:
        """See Organizations.keys."""
        return await anyio.to_thread.run_sync(self._sync.keys, organization)

    async def create_key(self, organization: str, name: str, role: str) -> tuple[str, str]:
        """See Organizations.create_key."""
        return await anyio.to_thread.run_sync(self._sync.create_key, organization, name, role)

    async def revoke_key(self, key: str, organization: str | None = None) -> None:
        """See Organizations.revoke_key."""
        await anyio.to_thread.run_sync(self._sync.revoke_key, key, organization)
        self._forget()

    async def hosts(self) -> list[dict[str, Any]]:
        """See Organizations.hosts."""
        return await anyio.to_thread.run_sync(self._sync.hosts)
