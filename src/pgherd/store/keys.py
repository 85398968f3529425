"""API keys for the signature check: cached, and forgotten when the database says that they changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from pgherd.store.db import AsyncDb
from pgherd.store.vault import Vault


@dataclass(frozen=True)
class Key:
    """One valid API key. `role` is operator, admin or read-only."""

    id: str
    secret: bytes = field(repr=False)
    organization_id: UUID
    organization: str
    role: str


class KeyCache:
    """Keys by id. Unknown ids are not remembered, so that a guesser cannot fill the memory."""

    def __init__(self, db: AsyncDb, vault: Vault) -> None:
        self._db = db
        self._vault = vault
        self._known: dict[str, Key] = {}
        self._epoch = 0

    def forget(self) -> None:
        """Drop everything; called on NOTIFY pgherd_keys and whenever the listening connection was lost."""
        self._known = {}
        self._epoch += 1

    async def get(self, key_id: str) -> Key | None:
        """The key, or None when there is no valid one of this id."""
        found = self._known.get(key_id)
        if found is None:
            epoch = self._epoch
            row = await self._db.row("key", key=key_id)
            if row is None:
                return None
            secret = self._vault.open(row["secret"])
            found = Key(key_id, secret, row["organization_id"], row["organization"], row["role"])
            if epoch == self._epoch:
                self._known[key_id] = found
        return found
