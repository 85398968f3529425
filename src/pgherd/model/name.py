"""Rules for what a request names: services, admins, networks and times of day."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from pgherd.contract.schema import incorrect
from pgherd.errors import Incorrect

#: Most entries of an ip-filter.
MOST_NETWORKS = 1024

_SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[_A-Za-z0-9][-._A-Za-z0-9]{0,62}")
_NETWORK = re.compile(r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?")
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]")
_LABEL = "lower-case letters, digits and hyphens, a letter first and no hyphen last, at most 63 characters"

#: Names that PostgreSQL, pg_hba.conf or PgBouncer read as something else, or that the platform uses.
RESERVED = frozenset(
    {
        *("all", "current_role", "current_user", "none", "pgbouncer", "postgres", "public", "replication"),
        *("samegroup", "samerole", "sameuser", "session_user", "user"),
    }
)


def service_name(name: str) -> str:
    """The name, or Incorrect with the rule: it becomes a DNS label, a directory and part of node names."""
    if not _SERVICE.fullmatch(name):
        raise Incorrect(f"name: a service name has {_LABEL}")
    return name


def organization_name(name: str) -> str:
    """The name, or Incorrect with the rule: it may be part of host names."""
    if not _SERVICE.fullmatch(name):
        raise Incorrect(f"name: an organization name has {_LABEL}")
    return name


def admin_username(name: str) -> str:
    """The name, or Incorrect with the rule for a role's name; PostgreSQL's limit is 63 bytes."""
    if not _USER.fullmatch(name):
        raise Incorrect(
            "admin-username: must be 1 to 63 letters, digits, hyphens, dots and underscores, no hyphen or dot first"
        )
    low = name.lower()
    if low in RESERVED or low.startswith(("pg_", "pgherd")):
        raise Incorrect(f"admin-username: {name} is reserved; so are names that begin with pg_ or pgherd")
    return name


def ip_filter(entries: Sequence[str]) -> list[str]:
    """The entries as they were sent, for they are shown so, or Incorrect with each that is no network."""
    if len(entries) > MOST_NETWORKS:
        raise Incorrect(f"ip-filter: must be a list of at most {MOST_NETWORKS} networks")
    faults = []
    for index, entry in enumerate(entries):
        try:
            network(entry)
        except ValueError:
            faults.append(f"ip-filter[{index}]: must be a network such as 10.20.0.0/16 or 2001:db8::/32, or an address")
    if faults:
        raise incorrect(faults)
    return list(entries)


def network(entry: str) -> str:
    """The network of an ip-filter entry in canonical form: host bits cleared, an address as its own network.

    IPv4 in an IPv6 coat is IPv4: that is how such clients appear. Raises ValueError.
    """
    if not _NETWORK.fullmatch(entry):
        raise ValueError("not a network")
    found = ipaddress.ip_network(entry, strict=False)
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= 96 and found.network_address.ipv4_mapped:
        return str(ipaddress.IPv4Network((found.network_address.ipv4_mapped, found.prefixlen - 96)))
    return str(found)


def maintenance_time(time: str) -> str:
    """The time of day, or Incorrect unless it is HH:MM:SS."""
    if not _TIME.fullmatch(time):
        raise Incorrect("maintenance.time: must be a time of day (UTC) such as 03:30:00")
    return time
