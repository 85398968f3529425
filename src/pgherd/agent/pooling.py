"""A node's PgBouncer, from whatever it is to what the spec says: a process beside its PostgreSQL, as the same user."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgherd.agent import report
from pgherd.drivers import config_files, hba, pgbouncer, postgres
from pgherd.drivers.pgbouncer import Console, Seen
from pgherd.drivers.postgres import Cluster
from pgherd.drivers.supervisor import Service, Supervisor
from pgherd.errors import HostFault, Unsupported
from pgherd.spec import NodeSpec

_PATIENCE = 5.0  # seconds for a start or a reload
_STOP_PATIENCE = 10.0
_TRIES = 5  # failed starts until it is left alone
_FILES = ("pgbouncer.ini", "pool_hba.conf")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def service_name(node_id: str) -> str:
    """The name of the service directory of a node's PgBouncer."""
    return f"pool-{node_id}"


@dataclass(frozen=True)
class Pooling:
    """One run for one node whose PostgreSQL runs.

    `groups`: the node's control groups; `users`: who may log in, None when that is not known.
    """

    supervisor: Supervisor
    program: pgbouncer.Program | None
    spec: NodeSpec
    cluster: Cluster
    groups: Sequence[Path] = ()
    users: Collection[str] | None = None

    @property
    def service(self) -> str:
        """The name of the service directory."""
        return service_name(self.spec.node_id)

    @property
    def console(self) -> Console:
        """Where the running one answers."""
        cluster = self.cluster
        return Console(cluster.program.bin / "psql", cluster.run, self.spec.port + 1, cluster.account)

    def ensure(self) -> str:
        """Make the spec's pools work, or let none be; returns the version that serves, empty: none is wished for.

        Raises Unsupported when the host has no PgBouncer for it, HostFault when it does not start or load the pools.
        """
        if not pgbouncer.is_wanted(self.spec):
            self.supervisor.remove(self.service, gently=False)
            for name in _FILES:
                (self.cluster.config / name).unlink(missing_ok=True)
            return ""
        self._prepare()
        assert self.program is not None
        marker = self._configure()
        seen = self._started()
        if self.spec.pooler_version not in ("", seen.version) and self.spec.pooler_version == self.program.version:
            # Not online: sessions over TLS cannot be handed over to another process.
            self.supervisor.restart(self.service, _STOP_PATIENCE)
            seen = self._started()
        if seen.marker != marker:
            seen = self._reloaded(marker)
        self.cut()
        return seen.version

    def runs(self) -> bool:
        """Whether it lives if it is wished for; a look that costs nothing."""
        return not pgbouncer.is_wanted(self.spec) or self.supervisor.lives(self.service)

    def cut(self) -> None:
        """End clients that the spec or PostgreSQL's roles do not let in any more."""
        if not pgbouncer.cut(self.console, self.spec, self._networks(), self.users):
            self.supervisor.restart(self.service, _STOP_PATIENCE)
            self._started()

    # --- steps ---------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self.program is None:
            raise Unsupported("PgBouncer is not installed on this host.")
        if not self.program.serves:
            oldest = ".".join(map(str, pgbouncer.OLDEST))
            raise Unsupported(f"Pools need PgBouncer {oldest} or newer; this host has {self.program.version}.")
        if postgres.psql(self.cluster, pgbouncer.is_prepared()).strip() != "t":
            postgres.psql(self.cluster, pgbouncer.preparing(), options={"client_min_messages": "error"})

    def _configure(self) -> str:
        """Write the configuration and the service; returns the configuration's marker."""
        assert self.program is not None
        cluster = self.cluster
        rooted, (_, hard) = cluster.account is not None, resource.getrlimit(resource.RLIMIT_NOFILE)
        ini = pgbouncer.render(
            self.spec, run=cluster.run, config=cluster.config, files=pgbouncer.open_files(rooted, hard)
        )
        rules = pgbouncer.render_hba(self.spec, self._networks())
        secrets = [(cluster.config / name).read_text() for name in ("server.crt", "server.key")]
        marker = hashlib.sha256("\0".join([ini, rules, *secrets]).encode()).hexdigest()[:32]
        config_files.install(cluster.config, "pool_hba.conf", rules, cluster.account)
        config_files.install(cluster.config, "pgbouncer.ini", pgbouncer.marked(ini, marker), cluster.account)
        self.supervisor.write(
            self.service,
            Service(
                pgbouncer.start_command(self.program, cluster.config),
                user=cluster.account.name if cluster.account else None,
                env=_ENVIRONMENT,
                down_signal="SIGQUIT",  # at once; SIGTERM waits for the last client
                kill_after_ms=2_000,
                oom_score_adj=-500,
                start=False,
                at_once=True,
                open_files=pgbouncer.FILES,
                groups=self.groups,
            ),
        )
        return marker

    def _networks(self) -> list[str]:
        return hba.allowed_networks(self.spec.ip_filter, self.spec.loopback)

    def _started(self) -> Seen:
        if not self.supervisor.lives(self.service) and self.spec.port + 1 in report.listening_ports():
            raise HostFault(f"Another program listens on port {self.spec.port + 1}.")
        self.supervisor.up(self.service)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if self.spec.port + 1 in report.listening_ports() and (seen := pgbouncer.look(self.console)):
                return seen
            state = self.supervisor.state(self.service)
            if state.waiting:
                self.supervisor.free_stale_lock(self.service)
            if state.deaths >= _TRIES and state.since < 30:
                self.supervisor.down(self.service, _STOP_PATIENCE)
                break
            time.sleep(0.02)
        raise HostFault("PgBouncer does not start.", detail=self._last_words())

    def _reloaded(self, marker: str) -> Seen:
        pgbouncer.reload(self.console)
        seen = pgbouncer.look(self.console)
        if seen is None or seen.marker != marker:
            raise HostFault("PgBouncer does not load the pools.", detail=self._last_words())
        return seen

    def _last_words(self) -> str:
        return report.clean(" ".join(self.supervisor.last_lines(self.service)[-2:]), self.cluster.directory)
