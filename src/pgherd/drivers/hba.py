"""Who may connect: pg_hba.conf, pg_ident.conf, and the cutting of connections that are no longer allowed."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from pgherd.errors import HostFault

_LOOPBACK = ("127.0.0.0/8", "::1/128")


def allowed_networks(ip_filter: Sequence[str], loopback: bool) -> list[str]:
    """The networks that may connect, normalised and without repeats. Raises HostFault for what is no network."""
    networks = list(_LOOPBACK) if loopback else []
    for entry in ip_filter:
        try:
            networks.append(str(ipaddress.ip_network(entry.strip(), strict=False)))
        except ValueError:
            raise HostFault("An entry of ip-filter is no address or network.", detail=repr(entry)[:80]) from None
    return list(dict.fromkeys(networks))


def render_hba(ip_filter: Sequence[str], loopback: bool, *, pooled: bool = False, major: int = 15) -> str:
    """pg_hba.conf: the platform by peer on the local socket; everybody else by TLS and SCRAM from allowed networks.

    `pooled`: PgBouncer, which runs as the service's OS user, logs in over the local socket as whom it has
    authenticated. Nobody but that user can reach the socket; up to 15 no map can name every role, hence `trust`.
    """
    lines = [
        "# Written by pgherd; changes are overwritten.",
        "local all,replication postgres peer map=platform",
        "local postgres pgherd_monitor peer map=platform",
        "local all pgherd_monitor reject",
    ]
    if pooled:
        lines += [
            "local postgres pgherd_pooler peer map=platform",
            "local all pgherd_pooler reject",
            "local postgres,template1 all reject",
            f"local all all {'peer map=pools' if major >= 16 else 'trust'}",
        ]
    lines += [
        "local all,replication all reject",
        "host replication all all reject",
        "host all postgres,pgherd_pooler,pgherd_monitor all reject",
        "host postgres,template1 all all reject",
        *(f"hostssl all all {network} scram-sha-256" for network in allowed_networks(ip_filter, loopback)),
        "host all all all reject",
    ]
    return "\n".join(lines) + "\n"


def render_ident(os_user: str, *, pooled: bool = False, major: int = 15) -> str:
    """pg_ident.conf: the service's own OS user is the superuser `postgres` on the local socket; see `render_hba`.

    Its exporter logs in as a role that may only look.
    """
    if '"' in os_user or "\n" in os_user:
        raise HostFault("An OS user's name is not acceptable.", detail=repr(os_user))
    lines = ["# Written by pgherd; changes are overwritten.", f'platform "{os_user}" postgres']
    lines.append(f'platform "{os_user}" pgherd_monitor')
    if pooled:
        lines.append(f'platform "{os_user}" pgherd_pooler')
    if pooled and major >= 16:
        lines.append(f'pools "{os_user}" all')
    return "\n".join(lines) + "\n"


def count_cut(ip_filter: Sequence[str], loopback: bool) -> str:
    """An SQL expression that ends the clients' connections from networks that are not allowed, and counts them."""
    networks = ",".join(allowed_networks(ip_filter, loopback))
    return (
        "(SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE client_addr IS NOT NULL"
        f" AND NOT coalesce(client_addr <<= ANY ('{{{networks}}}'::inet[]), false))"
    )
