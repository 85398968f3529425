"""Choose the host for a new node: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pgherd.errors import Conflict, Incorrect
from pgherd.model.features import Installed, missing
from pgherd.settings import Settings

GIB = 1 << 30


@dataclass(frozen=True)
class Host:
    """What placement needs to know of a host. Bytes."""

    id: UUID
    name: str
    memory_bytes: int
    versions: dict[str, str]
    services: int
    memory_promised: int
    facts: dict[str, Any] = field(default_factory=dict)


def fits(host: Host, memory_bytes: int, settings: Settings) -> bool:
    """Whether the host may be promised so much more."""
    return (host.memory_promised + memory_bytes) * 100 <= host.memory_bytes * settings.host_overcommit_percent


def full(host: Host, memory_bytes: int, settings: Settings) -> Conflict:
    """The refusal of so much more on the host, with the numbers."""
    limit = settings.host_overcommit_percent
    return Conflict(
        f"{memory_bytes / GIB:.0f} GiB more do not fit: plans on host {host.name} already take"
        f" {host.memory_promised / GIB:.0f} of {host.memory_bytes * limit / 100 / GIB:.0f} GiB"
        f" ({limit} % of its memory, setting host_overcommit_percent)."
    )


def choose(
    hosts: list[Host], version: str, memory_bytes: int, settings: Settings, extensions: Sequence[str] = ()
) -> Host:
    """The host with the smallest share of its memory promised, among those that have the version with `extensions`.

    Raises Incorrect or Conflict with what there is.
    """
    offered = sorted({v for host in hosts for v in host.versions})
    able = [host for host in hosts if version in host.versions]
    if not able:
        known = ", ".join(offered) or "none yet"
        raise Incorrect(f"version: {version} is not installed on any host; available: {known}.")
    for extension in extensions:
        able = [host for host in able if Installed.on(host.facts, version).has(extension)]
        if not able:
            raise Incorrect(missing(extension, version, [host.facts for host in hosts]))
    roomy = [host for host in able if host.services < settings.services_per_host]
    if not roomy:
        most = settings.services_per_host
        raise Conflict(f"Every host already has {most} services (setting services_per_host). Delete one or add a host.")
    fitting = [host for host in roomy if fits(host, memory_bytes, settings)]
    if not fitting:
        raise full(min(roomy, key=lambda host: host.memory_promised / host.memory_bytes), memory_bytes, settings)
    return min(fitting, key=lambda host: (host.memory_promised + memory_bytes) / host.memory_bytes)
