"""One node, from whatever it is to what its spec says, in named steps that each can be run again.

The steps read from top to bottom in `_run`, `_stop` and `_remove`. The observation at the end is the status.
What a running server was started and loaded with is read from the server itself (two markers among its
parameters), so an agent that died in between needs no memory of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from pgherd import failpoints, sealing
from pgherd.agent import backups, disk, exporting, features, origins, owned, pooling, proofs, report, tasks, warm
from pgherd.agent.jobs import Jobs
from pgherd.agent.makings import Makings
from pgherd.agent.origins import Impossible, Source
from pgherd.agent.pooling import Pooling
from pgherd.agent.records import note, read_record
from pgherd.agent.repositories import Repositories
from pgherd.agent.supply import Supply
from pgherd.agent.unknown import Deleted
from pgherd.drivers import config_files, extensions, hba, limits, pgbackrest, pgbouncer, postgres, postgres_settings
from pgherd.drivers.firewall import Door, Firewall
from pgherd.drivers.limits import Limits
from pgherd.drivers.postgres import Cluster, NotReady, Observation, Program
from pgherd.drivers.supervisor import Service, Supervisor
from pgherd.errors import HostFault, Interrupted, PgherdError, Unsupported
from pgherd.home import Home
from pgherd.spec import NodeSpec, NodeState, NodeStatus, Origin, TaskResult

log = logging.getLogger("pgherd.agent")

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_START_PATIENCE = 8.0  # seconds; a longer start goes on while the agent does other things
_RELOAD_PATIENCE = 5.0  # seconds
_STOP_PATIENCE = 120.0  # seconds
_TRIES = 5  # failed starts until s6 is told to leave it
_KILL_AFTER_MS = 60_000
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC",
    "PG_OOM_ADJUST_FILE": "/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE": "0",
}  # fmt: skip


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


class Broken(HostFault):
    """The node does not start; the message is the server's own last word."""


class Refused(HostFault):
    """PostgreSQL would not start with the wished configuration, so it was not installed."""


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
    _conf: dict[str, str] = field(default_factory=dict)

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
        self._do("exporter", lambda: self.host.supervisor.down(export, _STOP_PATIENCE))
        self._do("pools", lambda: self.host.supervisor.down(pooling.service_name(self.spec.node_id), _STOP_PATIENCE))
        self._do("stop", lambda: self.host.supervisor.down(self.service, _STOP_PATIENCE))

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
            self.host.supervisor.down(pooling.service_name(self.spec.node_id), _STOP_PATIENCE)
            self.host.supervisor.down(self.service, _STOP_PATIENCE)

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
        files = self._render(cluster, self._ensure_archiving(cluster))
        conf = cluster.config / "postgresql.conf"
        if conf.exists() and conf.read_text() != files["postgresql.conf"] and origins.is_there(cluster):
            config_files.install(cluster.config, "candidate.conf", files["postgresql.conf"], group)
            if refusal := postgres.refusal_of(cluster, cluster.config / "candidate.conf"):
                raise Refused(f"PostgreSQL refuses the settings: {_first_complaint(refusal)}")
        for name, text in files.items():
            config_files.install(cluster.config, name, text, group)

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
        if not self.directory.exists() or read_record(self.directory).leaving or not origins.is_there(self.cluster):
            return
        if repository is None or not self.host.repositories.record(self.spec.service_id).ready:
            raise HostFault("There is no repository that could take what the node has.")
        origins.ensure_ended(self.cluster)
        self.host.repositories.push_rest(repository, self.cluster)

    def _render(self, cluster: Cluster, archive_command: str) -> dict[str, str]:
        spec, account = self.spec, cluster.account
        slot, pooled = warm.read_slot(self.directory), pgbouncer.is_wanted(spec)
        conf = postgres_settings.render(
            spec, run=cluster.run, config=cluster.config,
            libraries=cluster.program.libraries, session_libraries=cluster.program.session_libraries,
            extensions=extensions.allow_list(
                extensions.installed(spec.version, cluster.program.control_files),
                frozenset() if spec.timescale else extensions.PRELOADED,
            ),
            locale=slot.locale if slot else postgres.locale(), archive_command=archive_command,
            archive_timeout=spec.repository.archive_timeout if spec.repository else 0,
        )  # fmt: skip
        files = {
            "pg_hba.conf": hba.render_hba(spec.ip_filter, spec.loopback, pooled=pooled, major=int(spec.version)),
            "pg_ident.conf": hba.render_ident(
                account.name if account else self.host.os_user, pooled=pooled, major=int(spec.version)
            ),
            "server.crt": spec.tls.certificate,
            "server.key": sealing.unseal(self.host.private_key, spec.tls.key),
        }
        self.marker = hashlib.sha256("\0".join([conf, *files.values()]).encode()).hexdigest()
        # The marker's file comes last: when it is there, the others are too.
        return files | {"postgresql.conf": f"{conf}{postgres_settings.MARKER} = '{self.marker}'\n"}

    def _ensure_supervised(self) -> None:
        cluster = self.cluster
        self.host.supervisor.write(
            self.service,
            Service(
                postgres.start_command(cluster, self.spec.restart),
                user=cluster.account.name if cluster.account else None,
                env=_ENVIRONMENT,
                down_signal="SIGINT",
                kill_after_ms=_KILL_AFTER_MS,
                oom_score_adj=-500,
                start=False,
                own_user=cluster.account is not None,
                groups=self.host.limits.groups(self.spec.node_id),
            ),
        )

    def _ensure_started(self) -> None:
        deadline = time.monotonic() + _START_PATIENCE
        # PostgreSQL itself would start as long as one of its addresses is free, and not be reached on the others.
        if self.spec.port in report.listening_ports() and not self.host.supervisor.lives(self.service):
            raise Broken(f"Another program listens on port {self.spec.port}.")
        fresh = not self.host.supervisor.lives(self.service)
        with self.host.starting:
            self.host.supervisor.up(self.service)
            if fresh:
                self._await_word(time.monotonic() + 0.5)
            with contextlib.suppress(NotReady):
                self._await_answer(min(deadline, time.monotonic() + 1))
        if self.seen is None:
            self._await_answer(deadline)

    def _await_word(self, deadline: float) -> None:
        """Wait until the log says that the server is ready: only a hint, that spares questions asked too early."""
        while time.monotonic() < deadline:
            log = "\n".join(self.host.supervisor.last_lines(self.service, 4096))
            if log.rfind("ready to accept connections") > log.rfind("LOG:  starting PostgreSQL"):
                return
            time.sleep(0.005)

    def _await_answer(self, deadline: float) -> None:
        """Wait until the server answers. Raises NotReady at `deadline`, Broken when it dies again and again."""
        reason, look_at = NotReady("PostgreSQL is starting."), time.monotonic() + 0.3
        while time.monotonic() < deadline:
            if self.spec.port in report.listening_ports():
                try:
                    self.seen = postgres.observe(self.cluster, self.cut)
                    return
                except NotReady as error:
                    reason = error
            if time.monotonic() > look_at:
                self._give_up_if_broken()
                look_at = time.monotonic() + 0.3
                if self.overtaken():
                    raise Interrupted("A newer wish for this node has come.")
            time.sleep(0.01)
        raise reason

    def _give_up_if_broken(self) -> None:
        state = self.host.supervisor.state(self.service)
        if state.waiting:
            self.host.supervisor.free_stale_lock(self.service)
        if state.deaths >= _TRIES and state.since < 30:
            words = report.last_words(self.host.supervisor.last_lines(self.service), self.host.home.root)
            self.host.supervisor.down(self.service)
            raise Broken(words or "PostgreSQL ends as soon as it is started.")

    def _ensure_restarted(self) -> None:
        assert self.seen is not None
        if self.seen.restart < self.spec.restart:
            self.seen = None
            # What is written before the end need not be written while nobody is served.
            with contextlib.suppress(HostFault):
                postgres.psql(self.cluster, "CHECKPOINT;", options={"statement_timeout": "60s"}, timeout=70)
            self.host.supervisor.restart(self.service, _STOP_PATIENCE)
            self._ensure_limits()  # a smaller one was too small for what was still in use
            self._await_answer(time.monotonic() + _START_PATIENCE)

    def _ensure_reloaded(self) -> None:
        """All of the files is in force, but for what waits for a restart. The start is looked at too: then PostgreSQL
        only warns of what a library refuses."""
        assert self.seen is not None
        is_new = self.before < self.spec.generation
        if self.seen.config != self.marker:
            is_new, deadline = True, time.monotonic() + _RELOAD_PATIENCE
            postgres.reload(self.cluster)
            while self.seen.config != self.marker:
                if time.monotonic() > deadline:
                    raise Refused(f"PostgreSQL does not load the settings: {self.seen.refused or 'no reason given'}")
                self.seen = postgres.observe(self.cluster, self.cut)
        if is_new and self.seen.refused:
            raise Refused(f"PostgreSQL does not load the settings: {self.seen.refused}")

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


def service_name(node_id: str) -> str:
    """The name of a node's service directory."""
    return f"node-{node_id}"


def status_of(spec: NodeSpec, state: NodeState, seen: Observation | None) -> NodeStatus:
    """The status of a node that is as its spec says."""
    status = NodeStatus(spec.node_id, spec.generation, state, restart=spec.restart, observed_at=report.now())
    if seen is None:
        return status
    return msgspec.structs.replace(
        status, version=seen.version, databases=seen.databases, users=seen.users, pending_restart=seen.pending_restart,
        max_connections=seen.max_connections, restart=seen.restart, read_only=seen.guard.partition(" ")[0],
    )  # fmt: skip


def _first_complaint(said: str) -> str:
    for line in said.splitlines():
        if found := re.search(r"(?:LOG|FATAL|ERROR):\s+(.*)", line):
            return found[1]
    return said.splitlines()[0]


__all__ = ["Broken", "Convergence", "Host", "Impossible", "PgherdError", "Refused", "door", "service_name", "status_of"]
