"""What every operation works with."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pgherd.settings import Settings
from pgherd.store.db import Db
from pgherd.store.vault import Vault
from pgherd.workflows.wakeups import Wakeups


@dataclass(frozen=True)
class App:
    """Built by the wiring. `wakeups` is None where nothing waits, as in the API."""

    settings: Settings
    db: Db
    vault: Vault
    wakeups: Wakeups | None = None


@dataclass(frozen=True)
class Caller:
    """Who asks: the organization, and the key and signature that make a retried request known."""

    organization_id: UUID
    organization: str
    key: str
    signature: str
