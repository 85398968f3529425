"""One node, from whatever it is to what its spec says, in named steps that each can be run again.

The steps read from top to bottom in `_run`, `_stop` and `_remove`. The observation at the end is the status.
What a running server was started and loaded with is read from the server itself (two markers among its
parameters), so an agent that died in between needs no memory of its own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pgherd import failpoints, sealing
from pgherd.agent import backups, disk, exporting, features, held, owned, pooling, proofs, report, tasks, warm
from pgherd.agent.configuration import Configuration
from pgherd.agent.jobs import Jobs
from pgherd.agent.makings import Makings
from pgherd.agent.origins import Source
from pgherd.agent.pooling import Pooling
from pgherd.agent.records import note, read_record
from pgherd.agent.repositories import Repositories
from pgherd.agent.serving import STOP_PATIENCE, Refused, Serving, service_name
from pgherd.agent.supply import Supply
from pgherd.agent.unknown import Deleted
from pgherd.drivers import hba, limits, pgbackrest, pgbouncer, postgres
from pgherd.drivers.firewall import Door, Firewall
from pgherd.drivers.limits import Limits
from pgherd.drivers.postgres import Cluster, Observation, Program
from pgherd.drivers.supervisor import Supervisor
from pgherd.errors import HostFault, Interrupted, PgherdError, Unsupported
from pgherd.home import Home
from pgherd.spec import NodeSpec, NodeState, NodeStatus, Origin, TaskResult

log = logging.getLogger("pgherd.agent")

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass
class Host:
    """What a convergence needs of its host. `starting` limits how many start at once."""

    home: Home
    supervisor: Supervisor
    slots: warm.Slots
    programs: dict[str, Program]
    private_key: bytes
    os_user: str  # the calling user, as whom everything runs without root
    starting: threading.BoundedSemaphore
    pooler: pgbouncer.Program | None
    firewall: Firewall
    limits: Limits
    repositories: Repositories
    jobs: Jobs
    deleted: Deleted
    makings: Makings
    spec_of: Callable[[str], NodeSpec | None]  # of another node of this host
    reserve_percent: int = 0  # of its disk


class Gone(Refused):
    """The node was deleted on this host: an empty one in its place would pass for it."""


@dataclass
class Convergence:
    """One run of one node. `overtaken` says that a newer spec waits, so that this run may end early; `before` is the
    generation that was in force before, 0: none."""

    host: Host
    spec: NodeSpec
    overtaken: Callable[[], bool] = lambda: False
    before: int = 0
    step: str = ""
    marker: str = ""
    seen: Observation | None = None
    task: TaskResult | None = None
    pooler: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.spec.node_id):
            raise HostFault("A node's id is not acceptable.")
        self.directory = self.host.home.nodes / self.spec.node_id
        self.service = service_name(self.spec.node_id)

    # --- the four ways ------------------------------------------------------------------------------------

    def carry_out(self) -> NodeState:
        """Make the spec true. Raises what prevents it; `step` then names where."""
        ways = {"running": self._run, "stopped": self._stop, "kept": self._keep, "absent": self._remove}
        ways[self.spec.desired]()
        self.step = ""
        return self.spec.desired

    def _run(self) -> None:
        self._do("place", self._ensure_directory)
        self._do("firewall", self._ensure_door)
        self._do("limits", self._ensure_limits)
        self._do("configure", self._ensure_configuration)
        self._do("data", self._ensure_data)
        self._do("supervise", self._ensure_supervised)
        self._do("start", self._ensure_started)
        self._do("restart", self._ensure_restarted)
        self._do("reload", self._ensure_reloaded)
        self._do("admin", self._ensure_admin)
        self._do("task", self._ensure_task_done)
        self._do("features", self._ensure_features)
        self._do("pools", self._ensure_pools)

    def _stop(self) -> None:
        export = exporting.service_name(self.spec.node_id)
        self.host.makings.cancel(self.spec.node_id)
        self._do("jobs", self._end_jobs)
        self._do("exporter", lambda: self.host.supervisor.down(export, STOP_PATIENCE))
        self._do("pools", lambda: self.host.supervisor.down(pooling.service_name(self.spec.node_id), STOP_PATIENCE))
        self._do("stop", lambda: self.host.supervisor.down(self.service, STOP_PATIENCE))

    def _keep(self) -> None:
        """All that is left is the repository and the OS user whose it is; the last segment has gone there."""
        self._stop()
        self._do("stop", lambda: self.host.supervisor.remove(self.service, gently=True))
        self._do("archive", self._archive_rest)
        for beside in (exporting.service_name(self.spec.node_id), pooling.service_name(self.spec.node_id)):
            self.host.supervisor.remove(beside, gently=False)
        self._do("delete", self._empty)
        self._do("limits", lambda: self.host.limits.remove(self.spec.node_id))
        self._do("firewall", lambda: self.host.firewall.drop(self.spec.node_id))

    def _remove(self) -> None:
        export = exporting.service_name(self.spec.node_id)
        pool = pooling.service_name(self.spec.node_id)
        self._do("jobs", lambda: self.host.jobs.end_others(self.spec.node_id))
        self.host.deleted.note(self.spec.node_id)
        self._do("exporter", lambda: self.host.supervisor.remove(export, gently=False))
        self._do("pools", lambda: self.host.supervisor.remove(pool, gently=False))
        self._do("stop", lambda: self.host.supervisor.remove(self.service, gently=False))
        self._do("repository", self._remove_repository)
        self._do("delete", self._discard)
        # Last, so that no process of the node is ever outside its walls.
        self._do("limits", lambda: self.host.limits.remove(self.spec.node_id))
        self._do("firewall", lambda: self.host.firewall.drop(self.spec.node_id))

    def _do(self, name: str, work: Callable[[], None]) -> None:
        if self.overtaken():
            raise Interrupted("A newer wish for this node has come.")
        self.step = name
        failpoints.passing(f"{self.spec.desired} {name} begin")
        for _ in failpoints.runs():
            work()
        failpoints.passing(f"{self.spec.desired} {name} end")

    # --- steps ---------------------------------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        """The cluster in the node's directory."""
        return Cluster(self._program(), self.directory, self.host.slots.account(self.directory), self.spec.port)

    @property
    def cut(self) -> str:
        """SQL that ends connections that this spec does not allow."""
        return hba.count_cut(self.spec.ip_filter, self.spec.loopback)

    def _program(self) -> Program:
        program = self.host.programs.get(self.spec.version)
        if program is None:
            raise Unsupported(f"PostgreSQL {self.spec.version} is not installed on this host.")
        return program

    def _ensure_directory(self) -> None:
        """A new node gets a warm directory; one whose data comes from elsewhere, or was lost, an empty one."""
        if self.directory.exists():
            if read_record(self.directory).leaving:
                self.host.slots.empty(self.directory)  # the rest of what was being deleted
            return
        if self.host.deleted.holds(self.spec.node_id):
            raise Gone(
                "The service was deleted and its data with it; what still knows it is an older copy of the metadata."
            )
        if self._origin is None and not self._established:
            self.host.slots.ensure(self._program(), self.directory)
            return
        owner = self.host.repositories.record(self.spec.service_id).user if self._established else ""
        self.host.slots.ensure_empty(self.directory, owner)

    @property
    def _established(self) -> bool:
        return self.spec.established or self.before > 0

    @property
    def _origin(self) -> Origin | None:
        return self.spec.origin if self.before < self.spec.generation else None

    def _ensure_data(self) -> None:
        def stop() -> None:
            self.host.supervisor.down(pooling.service_name(self.spec.node_id), STOP_PATIENCE)
            self.host.supervisor.down(self.service, STOP_PATIENCE)

        def kill() -> None:
            self.host.supervisor.remove(pooling.service_name(self.spec.node_id), gently=False)
            self.host.supervisor.remove(self.service, gently=False)

        supply = Supply(
            self.host.repositories, self.host.makings, self.spec, self._origin, self.cluster, limits.cores(),
            self._source, stop, kill, self.overtaken, self.host.reserve_percent,
        )  # fmt: skip
        supply.ensure()

    def _source(self, node_id: str) -> Source | None:
        spec = self.host.spec_of(node_id)
        if spec is None or spec.version != self.spec.version:
            return None
        other = Convergence(self.host, spec)
        lives, wished = self.host.supervisor.lives(other.service), spec.desired == "running"
        if not other.directory.exists():
            return None
        return Source(other.cluster, lives and wished, stops=lives and not wished, stopped=not lives and not wished)

    def _empty(self) -> None:
        if self.directory.exists() and not (record := read_record(self.directory)).leaving:
            record.leaving = True
            note(self.directory, record)
        self.host.slots.empty(self.directory)

    def _discard(self) -> None:
        self.host.makings.cancel(self.spec.node_id)
        self.host.slots.discard(self.directory)

    def _ensure_door(self) -> None:
        self.host.firewall.put(self.spec.node_id, door(self.host, self.spec))

    def _ensure_limits(self) -> None:
        host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.host.limits.ensure(self.spec.node_id, limits.bounds(self.spec, host_memory))

    def _ensure_configuration(self) -> None:
        cluster = self.cluster
        group = cluster.account
        owned.make(cluster.run, group)
        owned.make(cluster.directory / "data", group)
        cluster.config.mkdir(mode=0o750, exist_ok=True)
        if group is not None:
            os.chown(cluster.config, 0, group.gid)
        disk.ensure_file(cluster)
        configuration = Configuration(self.spec, cluster, self.host.os_user, self.host.private_key)
        self.marker = configuration.install(self._ensure_archiving(cluster))

    def _ensure_archiving(self, cluster: Cluster) -> str:
        """The way into the repository, which itself is made later; returns PostgreSQL's `archive_command`."""
        repository = self.spec.repository
        if repository is None or self.host.repositories.program is None:
            return ""
        return self.host.repositories.configure(
            repository, cluster, queue=backups.queue(self.spec), processes=pgbackrest.beside(limits.cores())
        )

    def _end_jobs(self) -> None:
        """What a proof leaves goes with it; that it cannot be deleted prevents no stop."""

        def clear() -> None:
            try:
                proofs.clear(self.cluster)
            except (PgherdError, OSError) as error:
                log.warning("node %s: %s", self.spec.node_id, error)

        self.host.jobs.end_others(self.spec.node_id, clear={"verify": clear})

    def _remove_repository(self) -> None:
        if self.spec.repository is not None:
            self.host.repositories.remove(self.spec.repository)

    def _archive_rest(self) -> None:
        """What was written last goes into the repository. As long as it cannot, for whatever reason, the data stays:
        it comes back with the service, or goes when that is not kept any more. Raises HostFault."""
        repository = self.spec.repository
        if not self.directory.exists() or read_record(self.directory).leaving or not held.is_there(self.cluster):
            return
        if repository is None or not self.host.repositories.record(self.spec.service_id).ready:
            raise HostFault("There is no repository that could take what the node has.")
        held.ensure_ended(self.cluster)
        self.host.repositories.push_rest(repository, self.cluster)

    @property
    def _serving(self) -> Serving:
        return Serving(
            self.host.supervisor, self.host.limits, self.host.home.root, self.host.starting, self.spec, self.cluster,
            self.cut, self.overtaken,
        )  # fmt: skip

    def _ensure_supervised(self) -> None:
        self._serving.supervise()

    def _ensure_started(self) -> None:
        self.seen = self._serving.started()

    def _ensure_restarted(self) -> None:
        assert self.seen is not None
        if self.seen.restart < self.spec.restart:
            self.seen = None
            # A smaller limit was too small for what was still in use.
            self.seen = self._serving.restarted(self._ensure_limits)

    def _ensure_reloaded(self) -> None:
        assert self.seen is not None
        self.seen = self._serving.reloaded(self.seen, self.marker, is_new=self.before < self.spec.generation)

    def _ensure_admin(self) -> None:
        """Make the admin, or give it the wished password; one that the tenant changed itself stays as it is."""
        record, admin = read_record(self.directory), self.spec.admin
        verifier = sealing.unseal(self.host.private_key, admin.verifier)
        wished = hashlib.sha256(f"{admin.name}\0{verifier}".encode()).hexdigest()
        if record.admin == wished:
            return
        script = postgres.creating_admin(admin.name, verifier) + postgres.observing(self.cut)
        self.seen = postgres.parse_observation(postgres.psql(self.cluster, script))
        record.admin = wished
        note(self.directory, record)

    def _ensure_task_done(self) -> None:
        """Carry out the spec's task unless that was done; what is seen afterwards contains its effect."""
        record, task = read_record(self.directory), self.spec.task
        if task is None:
            return
        if record.task is None or record.task.id != task.id:

            def begin() -> None:
                record.begun = task.id
                note(self.directory, record)

            execution = tasks.Execution(
                self.cluster, task, self.spec.admin.name,
                lambda sealed: sealing.unseal(self.host.private_key, sealed), begin, record.begun == task.id,
            )  # fmt: skip
            result = execution.carry_out()
            record.task = msgspec.structs.replace(result, reason=report.clean(result.reason, self.host.home.root))
            note(self.directory, record)
            self.seen = postgres.observe(self.cluster, self.cut)
        self.task = record.task

    def _ensure_features(self) -> None:
        assert self.seen is not None
        record = read_record(self.directory)
        for _ in features.ensure(self.cluster, self.spec, self.seen, record):
            note(self.directory, record)

    @property
    def pooling(self) -> Pooling:
        """The node's PgBouncer."""
        groups = self.host.limits.groups(self.spec.node_id)
        seen = self.seen.users if self.seen else []
        users = {role.name for role in seen} if 0 < len(seen) < postgres.MOST_SEEN else None
        return Pooling(self.host.supervisor, self.host.pooler, self.spec, self.cluster, groups, users)

    def _ensure_pools(self) -> None:
        self.pooler = self.pooling.ensure()


def door(host: Host, spec: NodeSpec) -> Door:
    """What the packet filter must know of a node; its processes' uid only when its directory is there."""
    directory = host.home.nodes / spec.node_id
    account = host.slots.account(directory) if directory.exists() else None
    networks, owners = (tuple(hba.allowed_networks(spec.ip_filter, loopback)) for loopback in (spec.loopback, False))
    uid, used = account.uid if account else None, (spec.repository, spec.origin.repository if spec.origin else None)
    stores = {pgbackrest.store_port(repository) for repository in used if repository is not None} - {0}
    return Door(spec.port, networks, spec.service_id, uid, owners, tuple(sorted(stores)))


def status_of(spec: NodeSpec, state: NodeState, seen: Observation | None) -> NodeStatus:
    """The status of a node that is as its spec says."""
    status = NodeStatus(spec.node_id, spec.generation, state, restart=spec.restart, observed_at=report.now())
    if seen is None:
        return status
    return msgspec.structs.replace(
        status, version=seen.version, databases=seen.databases, users=seen.users, pending_restart=seen.pending_restart,
        max_connections=seen.max_connections, restart=seen.restart, read_only=seen.guard.partition(" ")[0],
    )  # fmt: skip
