"""The first rows of a new instance: this host, the organization `default`, the operator's key, the key for recovery."""

from __future__ import annotations

import re

from pgherd.sealing import new_host_key, public_key
from pgherd.settings import Settings
from pgherd.store.db import Db, database_url
from pgherd.store.platform import Organizations
from pgherd.store.vault import Vault, key_file


def host_login(name: str) -> str:
    """The database role that the agent of the host `name` logs in as."""
    return "host_" + re.sub(r"[^a-z0-9]", "_", name.lower())


def ensure_operator(settings: Settings) -> tuple[str, str] | None:
    """Make what is missing. The key and its secret when a key was made now, else None.

    A key is made when no valid operator key exists; its secret is shown this once.
    """
    db = Db(database_url(settings), 1)
    try:
        organizations = Organizations(db, Vault(key_file(settings)))
        with db.transaction() as tx:
            tx.run("insert_host", name=settings.host, login=host_login(settings.host))
            default = tx.row("organization_by_name", name="default")
        if default is None:
            organizations.create("default")
        keys = [k for k in organizations.keys("default") if k["role"] == "operator" and k["revoked_at"] is None]
        return None if keys else organizations.create_operator_key()
    finally:
        db.close()


def ensure_recovery_key(settings: Settings) -> None:
    """Make the key that hosts seal for, see `spec.UnknownNode`, where there is none."""
    db, vault = Db(database_url(settings), 1), Vault(key_file(settings))
    try:
        with db.transaction() as tx:
            if tx.row("recovery_key") is None:
                private = new_host_key()
                tx.run("insert_recovery_key", public_key=public_key(private), private_key=vault.seal(private))
    finally:
        db.close()


def forget_observations(settings: Settings) -> None:
    """This host was down: none of its nodes runs until it is observed to run again."""
    db = Db(database_url(settings), 1)
    try:
        with db.transaction() as tx:
            tx.run("forget_observations", host=settings.host)
    finally:
        db.close()
