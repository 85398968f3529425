"""`pgherd doctor`: whether the packet filter and the limits of the services are in force."""

from __future__ import annotations

from collections.abc import Iterator

from pgherd.drivers.firewall import Firewall
from pgherd.drivers.limits import Limits
from pgherd.drivers.supervisor import Supervisor
from pgherd.errors import HostFault
from pgherd.home import Home
from pgherd.instance.findings import Finding

_INSTALL = "Run `sudo sh install/debian.sh`; the agent notices within a minute."
_AS_ROOT = "Only an instance that was started by root has them."


def firewall(home: Home, ports: set[int]) -> Iterator[Finding]:
    """`ports`: those of the services that this host has."""
    wall = Firewall(home.root)
    if problem := wall.look():
        yield Finding(
            "warning",
            "firewall",
            f"off ({problem}): PostgreSQL itself keeps the ip-filter, after the TLS handshake, and services can call"
            " other programs of this machine",
            _AS_ROOT if problem == "not root" else _INSTALL,
        )
        return
    try:
        open_ports = ports - wall.ports()
    except HostFault as error:
        yield Finding("broken", "firewall", str(error), "Run `nft list ruleset`.")
        return
    if open_ports:
        shown = ", ".join(str(p) for p in sorted(open_ports)[:8])
        yield Finding("broken", "firewall", f"does not guard {shown}", "Read the log of the agent; `pgherd restart`.")
    else:
        yield Finding("ok", "firewall", f"nftables table {wall.table} guards {len(ports)} ports")


def limits(home: Home, supervisor: Supervisor) -> Iterator[Finding]:
    """Whether every node that runs is in its control groups."""
    groups = Limits(home.root)
    if groups.problem:
        todo = _AS_ROOT if groups.problem == "not root" else "The kernel or the container keeps the control groups."
        yield Finding("warning", "limits", f"memory, processes and CPU are not all bounded ({groups.problem})", todo)
    if not groups.hierarchies:
        return
    names = [name for name in supervisor.names() if name.startswith("node-")]
    living = {name: state.pid for name in names if (state := supervisor.state(name)).up and not state.waiting}
    free = [name for name, pid in living.items() if not groups.holds(name.removeprefix("node-"), pid)]
    if free:
        yield Finding(
            "warning",
            "limits",
            f"{len(free)} of {len(living)} services run without bounds: {', '.join(free[:5])}",
            "They started before this release, or while the groups could not be made; a restart bounds them.",
        )
    else:
        kinds = ", ".join(f"{name} (v{found.version})" for name, found in groups.hierarchies.items())
        yield Finding("ok", "limits", f"{len(living)} services are bounded by control groups: {kinds}")
