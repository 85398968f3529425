"""A node's Prometheus exporter, from whatever it is to what the spec says: a process beside its PostgreSQL.

It is no part of the node's state: a node without its exporter runs. So it is looked after in the background, after the
node was reported to run, and what fails here is logged and tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgherd import sealing
from pgherd.drivers import config_files, exporter, hba, postgres
from pgherd.drivers.postgres import Cluster
from pgherd.drivers.supervisor import Service, Supervisor
from pgherd.spec import NodeSpec

_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_STOP_PATIENCE = 10.0
_TRIES = 5  # failed starts until it is left alone for a while


def service_name(node_id: str) -> str:
    """The name of the service directory of a node's exporter."""
    return f"export-{node_id}"


@dataclass(frozen=True)
class Exporting:
    """One run for one node whose PostgreSQL runs. `filtered`: a packet filter keeps the ip-filter on its port."""

    supervisor: Supervisor
    program: exporter.Program | None
    spec: NodeSpec
    cluster: Cluster
    private_key: bytes
    filtered: bool
    groups: Sequence[Path] = ()

    @property
    def wanted(self) -> bool:
        """Whether the node shall have one and the host can give it."""
        return bool(self.spec.monitor) and self.program is not None

    def runs(self) -> bool:
        """Whether it lives if it is wanted; a look that costs nothing."""
        return not self.wanted or self.supervisor.lives(service_name(self.spec.node_id))

    def ensure(self) -> None:
        """Let it be there as the spec says, or not be there. Raises HostFault."""
        name = service_name(self.spec.node_id)
        if self.program is None or not self.spec.monitor:
            self.supervisor.remove(name, gently=False)
            for file in exporter.FILES:
                (self.cluster.config / file).unlink(missing_ok=True)
            return
        config, account = self.cluster.config, self.cluster.account
        if postgres.psql(self.cluster, f"SELECT {exporter.is_prepared()};").strip() != "t":
            postgres.psql(self.cluster, exporter.preparing(), options={"client_min_messages": "error"})
        hashed = sealing.unseal(self.private_key, self.spec.monitor)
        config_files.install(config, "exporter.yml", exporter.render_web(config, hashed), account)
        queries = exporter.render_queries(int(self.spec.version))
        config_files.install(config, "exporter-queries.yml", queries, account)
        changed = self.supervisor.write(
            name,
            Service(
                exporter.command(self.program, config, self.addresses, int(self.spec.version)),
                user=account.name if account else None,
                env=_ENVIRONMENT | exporter.environment(self.cluster.run, self.spec.port, queries),
                kill_after_ms=2_000,
                oom_score_adj=500,  # the first to go when the node's memory is short
                start=False,
                groups=self.groups,
            ),
        )
        state = self.supervisor.state(name)
        if state.waiting:
            self.supervisor.free_stale_lock(name)
        if changed and state.up:
            self.supervisor.restart(name, _STOP_PATIENCE)
        elif state.deaths >= _TRIES and state.since < 30:
            self.supervisor.down(name, _STOP_PATIENCE)
        else:
            self.supervisor.up(name)

    @property
    def addresses(self) -> list[str]:
        """Where it listens: with nobody to keep the ip-filter only where that lets everybody in, else on loopback."""
        port = self.spec.port + 3
        allowed = hba.allowed_networks(self.spec.ip_filter, False)
        if self.filtered or {"0.0.0.0/0", "::/0"} <= set(allowed):
            return [f":{port}"]
        everywhere = ["0.0.0.0" if "0.0.0.0/0" in allowed else "127.0.0.1", "[::]" if "::/0" in allowed else "[::1]"]
        return [f"{address}:{port}" for address in everywhere]
