"""A service as it is wished for."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from pgherd.model.passwords import bcrypt_hash, new_password
from pgherd.model.pg_settings import merge

DEFAULT_ADMIN = "avnadmin"
DEFAULT_DATABASE = "defaultdb"
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class Maintenance(msgspec.Struct, frozen=True):
    """The weekly slot for updates, UTC; `dow` may be `never`."""

    dow: str
    time: str


class Schedule(msgspec.Struct, frozen=True):
    """When the daily backup starts, UTC."""

    hour: int
    minute: int


class Change(msgspec.Struct, frozen=True):
    """What one request sets; what it leaves out stays as it is."""

    plan: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    admin_username: str | UnsetType = UNSET
    admin_password: str | UnsetType = UNSET
    termination_protection: bool | UnsetType = UNSET
    ip_filter: list[str] | UnsetType = UNSET
    maintenance: Maintenance | UnsetType = UNSET
    backup_hour: int | UnsetType = UNSET
    backup_minute: int | UnsetType = UNSET
    work_mem: int | UnsetType = UNSET
    shared_buffers_percentage: int | UnsetType = UNSET
    pg_settings: dict[str, Any] | UnsetType = UNSET
    pgbouncer_settings: dict[str, Any] | UnsetType = UNSET
    pgaudit_settings: dict[str, Any] | UnsetType = UNSET
    pglookout_settings: dict[str, Any] | UnsetType = UNSET
    timescaledb_settings: dict[str, Any] | UnsetType = UNSET
    synchronous_replication: str | UnsetType = UNSET
    variant: str | UnsetType = UNSET


class Wish(msgspec.Struct, frozen=True):
    """The whole of what a service shall be. `work_mem` in MB; None: from the plan."""

    plan: str
    version: str
    admin: str
    maintenance: Maintenance
    backup: Schedule
    termination_protection: bool = False
    ip_filter: list[str] = []
    work_mem: int | None = None
    shared_buffers_percentage: int | None = None
    pg_settings: dict[str, Any] = {}
    pgbouncer_settings: dict[str, Any] = {}
    pgaudit_settings: dict[str, Any] = {}
    pglookout_settings: dict[str, Any] = {}
    timescaledb_settings: dict[str, Any] = {}
    synchronous_replication: str = "off"
    variant: str = "aiven"

    @classmethod
    def draft(cls, change: Change, default_version: str) -> Wish:
        """The wish of a create request. The default slots are drawn once, here."""
        draw = secrets.SystemRandom()
        first = cls(
            plan=str(change.plan),
            version=_given(change.version, default_version),
            admin=_given(change.admin_username, DEFAULT_ADMIN),
            maintenance=Maintenance(
                draw.choice(_DAYS), f"{draw.randrange(24):02}:{draw.randrange(60):02}:{draw.randrange(60):02}"
            ),
            backup=Schedule(draw.randrange(24), draw.randrange(60)),
        )
        return first.changed(change)

    def changed(self, change: Change) -> Wish:
        """The wish after a request: what was sent replaces, keys inside settings merge."""
        return msgspec.structs.replace(
            self,
            plan=_given(change.plan, self.plan),
            maintenance=_given(change.maintenance, self.maintenance),
            backup=Schedule(
                _given(change.backup_hour, self.backup.hour), _given(change.backup_minute, self.backup.minute)
            ),
            termination_protection=_given(change.termination_protection, self.termination_protection),
            ip_filter=_given(change.ip_filter, self.ip_filter),
            work_mem=_given(change.work_mem, self.work_mem),
            shared_buffers_percentage=_given(change.shared_buffers_percentage, self.shared_buffers_percentage),
            pg_settings=merge(self.pg_settings, _given(change.pg_settings, {})),
            pgbouncer_settings=merge(self.pgbouncer_settings, _given(change.pgbouncer_settings, {})),
            pgaudit_settings=merge(self.pgaudit_settings, _given(change.pgaudit_settings, {})),
            pglookout_settings=merge(self.pglookout_settings, _given(change.pglookout_settings, {})),
            timescaledb_settings=merge(self.timescaledb_settings, _given(change.timescaledb_settings, {})),
            synchronous_replication=_given(change.synchronous_replication, self.synchronous_replication),
            variant=_given(change.variant, self.variant),
        )

    def cold(self, other: Wish) -> Wish:
        """This wish with what a service that is stopped may change taken from the other one."""
        return msgspec.structs.replace(
            self,
            termination_protection=other.termination_protection,
            ip_filter=other.ip_filter,
            maintenance=other.maintenance,
            backup=other.backup,
        )


def _given(sent: Any, otherwise: Any) -> Any:
    return otherwise if sent is UNSET else sent


def how_to_start(name: str) -> str:
    """What to do about a service that was stopped."""
    return f"Start it: pgherd service start {name}, or PUT /pgherd/v1/service/{name}/start."


class Secrets(msgspec.Struct, frozen=True):
    """What is sealed in a service's row. `verifier` belongs to `password`; `tls_key` to the certificate, PEM.

    `monitor_password` is Prometheus', `monitor_hash` its bcrypt hash; empty in services of older versions.
    """

    password: str
    verifier: str
    tls_key: str = ""
    monitor_password: str = ""
    monitor_hash: str = ""

    def with_monitor(self) -> Secrets:
        """The same, with a password for Prometheus."""
        if self.monitor_password:
            return self
        drawn = new_password()
        return msgspec.structs.replace(self, monitor_password=drawn, monitor_hash=bcrypt_hash(drawn))
