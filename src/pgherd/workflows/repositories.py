"""A service's repository in the metadata: its key, what hosts are told of it, and its removal."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any
from uuid import UUID

import msgspec

from pgherd.model.plan import Plan
from pgherd.sealing import seal
from pgherd.spec import S3, Repository
from pgherd.store.db import Transaction
from pgherd.workflows.app import App


def ensure_repository(app: App, tx: Transaction, service: UUID) -> None:
    """The service has a place for its backups and a key of its own; where it is, is decided once."""
    kind = "s3" if app.settings.backup_s3_endpoint else "directory"
    _insert(app, tx, service, kind, secrets.token_urlsafe(48))


def adopt_repository(app: App, tx: Transaction, service: UUID, found: Repository, cipher: str) -> None:
    """The repository that a host has of a service goes on to be the service's; `cipher` is opened."""
    _insert(app, tx, service, found.kind, cipher)


def _insert(app: App, tx: Transaction, service: UUID, kind: str, cipher: str) -> None:
    tx.run("insert_repository", service_id=service, kind=kind, key=app.vault.seal(cipher.encode()))


def repository_for(
    app: App, tx: Transaction, service: UUID, plan: Plan, public_key: str, known: dict[str, Any] | None
) -> Repository:
    """What a host is told; `known` is what it was told before, whose sealed secrets stay while nothing changed.

    `public_key` is that of the host.
    """
    row = tx.row("repository", service_id=service)
    assert row is not None
    cipher, s3 = app.vault.open(row["key"]).decode(), _s3(app) if row["kind"] == "s3" else None
    wished = Repository(str(service), row["kind"], cipher, plan.backups.count, s3, app.settings.archive_timeout_seconds)
    # Sealing gives another text each time: a mark of what was sealed tells whether it must be done again.
    mark = hashlib.sha256(public_key.encode() + msgspec.json.encode(wished)).hexdigest()[:32]
    if known and known.get("mark") == mark:
        return msgspec.convert({**known, "mark": mark}, Repository)
    if s3 is not None:
        s3 = msgspec.structs.replace(s3, key=seal(public_key, s3.key), secret=seal(public_key, s3.secret))
    return msgspec.structs.replace(wished, cipher=seal(public_key, cipher), s3=s3, mark=mark)


def _s3(app: App) -> S3:
    settings = app.settings
    return S3(
        settings.backup_s3_endpoint, settings.backup_s3_bucket, settings.backup_s3_region, settings.backup_s3_key,
        settings.backup_s3_secret, settings.backup_s3_prefix, settings.s3_ca, settings.backup_s3_path_style,
    )  # fmt: skip


def forget_repository(tx: Transaction, service: UUID) -> None:
    """Its key is gone, and with it all that may still lie anywhere. The hosts have removed what they had."""
    tx.run("delete_repository", service_id=service)
