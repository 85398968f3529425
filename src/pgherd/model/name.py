"""Rules for what a request names: services, users, databases, pools, networks and times of day."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence

from pgherd.contract.schema import incorrect
from pgherd.errors import Incorrect

#: Most entries of an ip-filter.
MOST_NETWORKS = 1024

_SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[_A-Za-z0-9][-._A-Za-z0-9]{0,62}")
_PASSWORD = re.compile(r"[-_A-Za-z0-9]{8,256}")
_LOCALE = re.compile(r"[A-Za-z][-_.@A-Za-z0-9]{0,127}")
_NETWORK = re.compile(r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?")
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]")
_LABEL = "lower-case letters, digits and hyphens, a letter first and no hyphen last, at most 63 characters"

#: Names that PostgreSQL, pg_hba.conf or PgBouncer read as something else, or that the platform uses.
RESERVED = frozenset(
    {
        *("all", "current_role", "current_user", "none", "pgbouncer", "postgres", "public", "replication"),
        *("samegroup", "samerole", "sameuser", "session_user", "template0", "template1", "user"),
    }
)
#: Most characters of a database's name in the contract; PostgreSQL itself takes 63 bytes.
_DATABASE_LENGTH = 40


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
    return _named("admin-username", name)


def username(name: str, field: str = "username") -> str:
    """The name of a new user, or Incorrect with the rule."""
    return _named(field, name)


def database_name(name: str) -> str:
    """The name of a new database, or Incorrect with the rule."""
    return _named("database-name", name, _DATABASE_LENGTH)


def pool_name(name: str) -> str:
    """The name of a new pool, or Incorrect with the rule: clients name it where they name a database."""
    return _named("name", name)


def _named(field: str, name: str, most: int = 63) -> str:
    if not _USER.fullmatch(name) or len(name) > most:
        raise Incorrect(
            f"{field}: must be 1 to {most} letters, digits, hyphens, dots and underscores, no hyphen or dot first"
        )
    if reserved(name):
        raise Incorrect(f"{field}: {name} is reserved; so are names that begin with pg_ or pgherd")
    return name


def reserved(name: str) -> bool:
    """Whether a name belongs to PostgreSQL, to PgBouncer or to the platform, in whatever case it is written."""
    low = name.lower()
    return low in RESERVED or low.startswith(("pg_", "pgherd"))


def password(text: str) -> str:
    """The password, or Incorrect with the rule; the text itself is never repeated."""
    if not _PASSWORD.fullmatch(text):
        raise Incorrect("password: must be 8 to 256 letters, digits, hyphens and underscores")
    return text


def locale(field: str, name: str) -> str:
    """The name of a locale such as en_US.UTF-8 or C, or Incorrect; whether a host has it, the host says."""
    if not _LOCALE.fullmatch(name):
        raise Incorrect(f"{field}: must be the name of a locale such as en_US.UTF-8, de_CH.UTF-8 or C")
    return name


def known_locale(field: str, name: str, known: Collection[str]) -> None:
    """Raise Incorrect unless a host with the locales `known` has this one. They differ in how they spell UTF-8."""
    if name.lower().replace("-", "") not in {one.lower().replace("-", "") for one in known}:
        some = ", ".join(sorted(known)[:20]) + (", ..." if len(known) > 20 else "")
        raise Incorrect(f"{field}: the service's host does not have the locale {name}; it has {some}")


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
