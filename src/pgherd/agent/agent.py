"""The agent: one process a host. It fetches specs, converges each node, observes, and reports.

The main thread owns the link and decides; a pool of threads converges, one run a node at a time. The last
specs are kept in `HOME/agent`, so that nodes are looked after while the metadata database is away.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from pgherd import failpoints, sealing
from pgherd.agent import features, installed, report, warm
from pgherd.agent.backups import Care, Tending, Threads
from pgherd.agent.converge import Convergence, Gone, Host, door, status_of
from pgherd.agent.disk import Watch
from pgherd.agent.jobs import Jobs
from pgherd.agent.kept import Specs
from pgherd.agent.link import Link, PostgresLink
from pgherd.agent.makings import Makings
from pgherd.agent.origins import Impossible
from pgherd.agent.platform import Platform
from pgherd.agent.records import read_record, write_private
from pgherd.agent.repositories import Repositories
from pgherd.agent.serving import Broken, Refused, service_name
from pgherd.agent.telemetry import Telemetry
from pgherd.agent.unknown import Deleted, Unknown
from pgherd.drivers import disk, exporter, pgbackrest, pgbouncer, postgres
from pgherd.drivers.firewall import Door, Firewall
from pgherd.drivers.limits import Limits
from pgherd.drivers.os_users import OsUsers
from pgherd.drivers.postgres import Cluster, NotReady, Observation, Program
from pgherd.drivers.supervisor import Supervisor
from pgherd.errors import Fault, Interrupted, PgherdError, Unavailable, Unsupported
from pgherd.home import Home
from pgherd.settings import Settings
from pgherd.spec import HostFacts, JobStatus, NodeSpec, NodeState, NodeStatus, TaskResult, disk_limit

log = logging.getLogger("pgherd.agent")

_LOOK_EVERY = 9.0  # seconds between observations of a running node; the design promises 10
_LOOK_SOON = 2.0  # after a convergence
_LOOK_AT_JOB = 1.0  # at a running job's progress
_ASK_EVERY = 10.0  # seconds between looks for specs without a notification
_FACTS_EVERY = 30.0
_RETRY_BROKEN = 30.0
_RETRY = 1.0
_THREADS = 16


@dataclass
class Node:
    """What the agent remembers of a node.

    `converged`: the generation in force; `task`: the result of its task; `pooler`: the version of PgBouncer that
    serves; `due`: when to look at it again; `rung`: something has happened since the look that goes on began.
    """

    spec: NodeSpec
    converged: int = 0
    status: NodeStatus | None = None
    marker: str = ""
    task: TaskResult | None = None
    pooler: str = ""
    busy: bool = False
    due: float = 0.0
    rung: bool = False
    changed_at: int = 0
    care: Care = field(default_factory=Care)
    jobs: list[JobStatus] = field(default_factory=list)


class Agent:
    """See the module. `link` is the one seam for tests."""

    def __init__(self, settings: Settings, link: Link) -> None:
        self.settings, self.link = settings, link
        self.home = Home(settings.root)
        rooted = os.geteuid() == 0
        self.supervisor = Supervisor(self.home.scan, self.home.logs, "pgherd-log" if rooted else None)
        self.installed = installed.Installed(settings)
        cores = os.cpu_count() or 1
        self.slots = warm.Slots(self.home.warm, OsUsers(*settings.uids, self.home.agent / "last-uid"))
        private_key = self._private_key()
        self.host = Host(
            self.home, self.supervisor, self.slots, self.installed.postgres, private_key,
            getpass.getuser(), threading.BoundedSemaphore(cores * 2), self.installed.pgbouncer,
            Firewall(self.home.root, [settings.port_range, (settings.listen_address[1],) * 2]), Limits(self.home.root),
            Repositories(self.home, pgbackrest.program(settings.pgbackrest), private_key),
            Jobs(self.home, self.supervisor, max(1, cores // 2), self._look_again),
            Deleted(self.home.agent / "deleted"), Makings(self._look_again), self._spec_of,
            settings.host_disk_reserve_percent,
        )  # fmt: skip
        self.unknown = Unknown(self.host.private_key)
        self.platform = Platform(self.home, self.host.jobs, self.host.repositories.program)
        self.nodes: dict[str, Node] = {}
        self.specs = Specs(self.home.agent / "specs")
        self._exporter = exporter.program(settings.exporter)
        self.telemetry = Telemetry(self.host, self._exporter, self.nodes.__contains__, link)
        self._unsent: dict[str, NodeStatus] = {}
        self.watch = Watch(
            self.home.nodes, settings.host_disk_reserve_percent, lambda: [n.spec for n in list(self.nodes.values())],
            self._cluster_of, self._look_again,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="node")
        self._beside = Threads(2)
        self._refilling: threading.Thread | None = None
        self._facts: HostFacts | None = None
        self._ask_at = self._facts_at = self._refill_at = 0.0

    @property
    def programs(self) -> dict[str, Program]:
        """PostgreSQL as it is installed now."""
        return self.host.programs

    # --- main thread ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`."""
        for directory in (self.home.warm, self.home.nodes):
            disk.make_apart(directory)
        self.slots.clean()
        self.host.deleted.forget_old()
        self._load()
        self.host.firewall.begin(self._doors())
        self.supervisor.ensure_scanner()
        threading.Thread(target=self.watch.run, args=(self._stopping,), name="disk", daemon=True).start()
        while not self._stopping.is_set():
            pause = self._turn()
            try:
                if self.link.wait(pause):
                    self._ask_at = 0.0
            except Unavailable as error:
                log.warning("%s", error)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.telemetry.stop()

    def stop(self) -> None:
        """End `run` soon; may be called by a signal handler."""
        self._stopping.set()
        self.link.wake()

    def _turn(self) -> float:
        """Do what is due; returns how many seconds may pass until the next turn."""
        try:
            self.supervisor.ensure_scanner()
        except (PgherdError, OSError) as error:
            log.error("The supervisor: %s", error)
        self.host.firewall.keep()
        try:
            self._exchange()
        except Unavailable as error:
            log.debug("%s", error)
        except OSError as error:
            # As on a full disk; what could not be kept is kept when the node is in force.
            log.error("The exchange with the control plane: %s", error)
        self._schedule()
        self.platform.tend()
        self._refill()
        soonest = min((n.due for n in self.nodes.values() if not n.busy), default=float("inf"))
        return max(0.0, min(soonest - time.monotonic(), 1.0))

    def _exchange(self) -> None:
        now, asked = time.monotonic(), self._ask_at == 0.0
        if self.installed.look_again():
            self.host.programs, self.host.pooler = self.installed.postgres, self.installed.pgbouncer
            self._facts_at = 0.0
        if now >= self._facts_at:
            # Before anything is known of the nodes, their ports are others': some may be unknown to the metadata.
            own = {n.spec.port for n in self.nodes.values()} if self._facts else set()
            pooler = self.host.pooler.version if self.host.pooler else ""
            facts = report.facts(self.programs, self._exporter, pooler, own)
            if facts != self._facts or asked:
                self.link.register(sealing.public_key(self.host.private_key), facts)
                self._facts = facts
            self._facts_at = now + _FACTS_EVERY
        if now >= self._ask_at:
            specs = self.link.specs()
            # First: a node that was forgotten there and is gone here must not be taken for one that is to go.
            self.unknown.tell(self.link, self.nodes, {spec.node_id for spec in specs})
            for spec in specs:
                self._accept(spec)
            self._ask_at = now + _ASK_EVERY
        self._send()
        self.telemetry.exchange()

    def _send(self) -> None:
        with self._lock:
            unsent = list(self._unsent.items())
        for node_id, status in unsent:
            self.link.report(status)
            with self._lock:
                if self._unsent.get(node_id) is status:
                    del self._unsent[node_id]
            if status.state == "absent":
                self._forget(node_id)

    def _accept(self, spec: NodeSpec) -> None:
        node = self.nodes.get(spec.node_id)
        if node is None:
            node = self.nodes[spec.node_id] = Node(spec)
        elif spec.generation < node.spec.generation:
            log.warning("node %s: refused generation %d after %d", spec.node_id, spec.generation, node.spec.generation)
            return
        elif spec == node.spec:
            return
        with_jobs = msgspec.structs.replace(node.spec, generation=spec.generation, jobs=spec.jobs)
        if spec == with_jobs and spec.jobs != node.spec.jobs and node.converged == node.spec.generation:
            node.converged = spec.generation  # jobs are nothing to converge, and need not wait for it
        elif spec.generation == node.spec.generation:
            # Metadata of an older copy has come as far again; what it says under this number now is not in force.
            node.converged = min(node.converged, spec.generation - 1)
        node.spec, node.due = spec, 0.0
        self.specs.keep(node.spec, node.converged, node.status)

    def _schedule(self) -> None:
        now = time.monotonic()
        for node in self.nodes.values():
            changed_at = self.supervisor.changed_at(service_name(node.spec.node_id))
            if changed_at != node.changed_at:
                node.changed_at = changed_at
                if node.status is not None and node.status.state == "running":
                    node.due = min(node.due, now)  # it may have ended: do not wait for the next observation
            if not node.busy and node.due <= now:
                node.busy = True
                self._pool.submit(self._look_after, node)

    def _converges(self) -> bool:
        return any(n.busy and n.converged != n.spec.generation for n in self.nodes.values())

    def _refill(self) -> None:
        """Make one warm directory when nothing has been going on for a moment."""
        program = self.programs.get(self.settings.default_version)
        if program is None or (self._refilling is not None and self._refilling.is_alive()):
            return
        if self._converges() or self._stopping.is_set() or time.monotonic() < self._refill_at:
            return

        def refill() -> None:
            try:
                if self.slots.refill(program, self.settings.warm_pool):
                    self.link.wake()
                else:
                    self._refill_at = time.monotonic() + 1
            except (PgherdError, OSError) as error:
                log.error("The warm pool: %s", error)
                self._refill_at = time.monotonic() + _RETRY_BROKEN

        self._refilling = threading.Thread(target=refill, name="warm", daemon=True)
        self._refilling.start()

    # --- one node, in a thread of the pool -----------------------------------------------------------------

    def _look_after(self, node: Node) -> None:
        spec, node.rung = node.spec, False
        try:
            status, pause = self._observe(node, spec) or self._converge(node, spec)
            node.due = time.monotonic() + pause
            self._say(node, status)
        except Interrupted:
            node.due = 0.0
        except Exception:
            log.exception("node %s: unexpected", spec.node_id)
            node.due = time.monotonic() + _RETRY_BROKEN
        finally:
            if node.spec is not spec or node.rung:
                node.due = 0.0
            node.busy = False
            self.link.wake()

    def _look_again(self, node_id: str) -> None:
        """Look at a node at once, or once more when that is going on; called by any thread."""
        if (node := self.nodes.get(node_id)) is not None:
            node.rung, node.due = True, 0.0
            self.link.wake()

    def _spec_of(self, node_id: str) -> NodeSpec | None:
        node = self.nodes.get(node_id)
        return node.spec if node is not None else None

    def _is_read(self, service_id: str) -> bool:
        """Whether a node's data is yet to come from this service's repository; not when it cannot."""
        return any(
            (origin.repository.service_id if origin.repository else node.spec.service_id) == service_id
            for node in list(self.nodes.values())
            if (origin := node.spec.origin) is not None and node.converged < node.spec.generation
            and node.spec.desired == "running" and not (node.status and node.status.refused >= node.spec.generation)
        )  # fmt: skip

    def _say(self, node: Node, status: NodeStatus) -> None:
        """Remember the status and let the main thread report it, with what is known of the repository."""
        if node.spec.repository is not None and status.state != "absent":
            status = msgspec.structs.replace(status, repository=node.care.known(self.host.repositories, node.spec))
        node.status = status
        with self._lock:
            self._unsent[status.node_id] = status
        self.link.wake()

    def _observe(self, node: Node, spec: NodeSpec) -> tuple[NodeStatus, float] | None:
        """Look at a node that runs as wished; None when it does not, so that it is converged."""
        settled = node.converged == spec.generation and spec.desired == "running" and node.marker
        if not settled or node.status is None or node.status.state != "running":
            return None
        convergence = Convergence(self.host, spec)
        try:
            seen = self.telemetry.observe(convergence)
        except PgherdError as error:
            self._say(node, msgspec.structs.replace(
                node.status, state="starting", step="start", reason=report.describe(error, self.home.root),
                observed_at=report.now(),
            ))  # fmt: skip
            return None
        convergence.seen = seen
        if seen.config != node.marker or seen.restart < spec.restart or not convergence.pooling.runs():
            return None
        if pgbouncer.is_wanted(spec) and {role.name for role in node.status.users} - {role.name for role in seen.users}:
            convergence.pooling.cut()
        record = read_record(convergence.directory)
        left = record.unclean and not self.host.makings.work_on(spec.node_id)
        if left or not features.are_current(spec, seen, record):
            return None
        soon = self._tend(node, spec, convergence, seen)
        status = self._running(node, spec, seen)
        size = disk_limit(spec.disk_bytes, status.disk_capacity)
        self.telemetry.observed(convergence, seen, status.disk_used, size)
        return status, _LOOK_AT_JOB if soon else _LOOK_EVERY

    def _tend(self, node: Node, spec: NodeSpec, convergence: Convergence, seen: Observation) -> bool:
        """Look after the repository and the jobs of a node whose PostgreSQL runs; whether to look again soon."""
        groups = list(self.host.limits.groups(spec.node_id))
        tending = Tending(
            self.host.repositories, self.host.jobs, spec, convergence.cluster, node.care,
            lambda work: self._beside.start(work, lambda: self._look_again(spec.node_id)), groups,
            self.settings.host_disk_reserve_percent,
            lambda: self._is_read(spec.service_id),
        )  # fmt: skip
        node.jobs = tending.carry_out(seen.archiver, idle=not self._converges())
        return any(job.state in ("waiting", "running") for job in node.jobs) or not tending.settled

    def _converge(self, node: Node, spec: NodeSpec) -> tuple[NodeStatus, float]:
        overtaken = lambda: node.spec is not spec or self._stopping.is_set()  # noqa: E731
        convergence: Convergence | None = None
        try:
            convergence = Convergence(self.host, spec, overtaken, node.converged)
            state = convergence.carry_out()
        except Interrupted:
            raise
        except (PgherdError, OSError) as error:
            log.warning("node %s: %s: %s", spec.node_id, convergence.step if convergence else "", error)
            return self._failed(node, spec, convergence, error)
        failpoints.passing(f"{spec.desired} record begin")
        if node.converged != spec.generation:
            log.info("node %s: %s, generation %d", spec.node_id, state, spec.generation)
        node.converged, node.marker = spec.generation, convergence.marker
        status = status_of(spec, state, None)
        if state == "stopped":
            status = node.status = self._stopped(node, status)
        if state != "absent":
            self.specs.keep(node.spec, node.converged, node.status)
        failpoints.passing(f"{spec.desired} record end")
        if convergence.seen is None:
            return status, _LOOK_EVERY if state == "absent" else 60.0
        node.task, node.pooler = convergence.task, convergence.pooler
        return self._running(node, spec, convergence.seen), 0.0 if spec.jobs else _LOOK_SOON

    def _running(self, node: Node, spec: NodeSpec, seen: Observation) -> NodeStatus:
        last = disk.Usage(node.status.disk_used, node.status.disk_capacity) if node.status else disk.Usage(0, 0)
        usage = self.watch.usage(spec.node_id) or last
        return msgspec.structs.replace(
            status_of(spec, "running", seen), task=node.task, pooler=node.pooler, jobs=node.jobs,
            disk_used=usage.used, disk_capacity=usage.capacity,
            origin=read_record(self.home.nodes / spec.node_id).origin,
        )  # fmt: skip

    def _stopped(self, node: Node, status: NodeStatus) -> NodeStatus:
        """The databases, users and sizes of a stopped node are what was seen last."""
        if node.status is None:
            return status
        return msgspec.structs.replace(
            node.status, generation=status.generation, state=status.state, restart=status.restart, pooler="",
            step="", reason="", refused=0, pending_restart=[], observed_at=status.observed_at,
        )  # fmt: skip

    def _failed(
        self, node: Node, spec: NodeSpec, convergence: Convergence | None, error: PgherdError | OSError
    ) -> tuple[NodeStatus, float]:
        """The status of a node that could not be converged: an older generation may still run."""
        state: NodeState = "starting" if isinstance(error, NotReady) else "failed"
        old = node.status or NodeStatus(spec.node_id, node.converged, "setting_up")
        after_start = convergence is not None and convergence.step in (
            "configure",
            "data",
            "reload",
            "admin",
            "task",
            "pools",
        )
        if convergence is not None and spec.desired == "running" and after_start:
            node.task = convergence.task or node.task
            try:
                seen = postgres.observe(convergence.cluster, convergence.cut)
                if convergence.step in ("task", "pools"):
                    self._tend(node, spec, convergence, seen)  # a backup waits for no PgBouncer
                old = msgspec.structs.replace(self._running(node, spec, seen), restart=seen.restart)
                state = "running"
            except (PgherdError, OSError):
                pass
        plain = error.message if isinstance(error, Broken | Impossible) else ""
        message = plain or report.describe(error, self.home.root)
        if state != "running" and self.watch.is_full():
            message = "No space is left on the host's disk."  # the server's own words could not be written either
        # What was deleted or lost here the metadata knows by a generation that this agent never saw.
        new_here = isinstance(error, Gone) or (spec.established and not node.converged)
        generation = spec.generation if new_here and state != "running" else node.converged
        status = msgspec.structs.replace(
            old, generation=generation, state=state, step=convergence.step if convergence else "",
            reason=report.clean(message, self.home.root), observed_at=report.now(),
            refused=spec.generation if isinstance(error, Broken | Impossible | Refused | Unsupported) else 0,
        )  # fmt: skip
        pause = {"starting": _RETRY, "running": _LOOK_EVERY}.get(state, _RETRY_BROKEN)
        # What stopped or absent lacks is mostly time: a backend that has not ended, a busy /etc/passwd.
        return status, min(pause, 3.0) if spec.desired != "running" else pause

    # --- what the agent keeps ------------------------------------------------------------------------------

    def _private_key(self) -> bytes:
        self.home.agent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.home.agent / "key"
        if not path.exists():
            write_private(path, sealing.new_host_key())
        key = path.read_bytes()
        if len(key) != 32:
            raise Fault("The host's key file is damaged.", detail=str(path))
        return key

    def _load(self) -> None:
        for kept in self.specs.load():
            self.nodes[kept.spec.node_id] = Node(kept.spec, kept.converged, kept.status)
        unknown = {n for n in self.supervisor.names() if n.startswith("node-")} - {service_name(n) for n in self.nodes}
        if unknown:
            log.warning("Services that no spec is known for are left alone: %s", ", ".join(sorted(unknown)))

    def _cluster_of(self, spec: NodeSpec) -> Cluster | None:
        """Where a node lies; None before it has its directories."""
        with contextlib.suppress(PgherdError):
            cluster = Convergence(self.host, spec).cluster
            return cluster if cluster.config.exists() and cluster.run.exists() else None
        return None

    def _doors(self) -> dict[str, Door]:
        """The doors of the nodes that are kept: they are there before any of their servers is started."""
        found = {}
        for node_id, node in self.nodes.items():
            try:
                found[node_id] = door(self.host, node.spec)
            except PgherdError as error:
                log.error("node %s: no door: %s", node_id, error)
        return found

    def _forget(self, node_id: str) -> None:
        node = self.nodes.get(node_id)
        if node is not None and node.spec.desired == "absent":
            del self.nodes[node_id]
            self.telemetry.forget(node_id)
            self.specs.forget(node_id)


def run(settings: Settings) -> None:
    """Be the agent of this host until SIGTERM."""
    os.umask(0o022)  # the supervisor's 077 would keep the services out of the directories that hold theirs
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    failpoints.name_process("agent")
    agent = Agent(settings, PostgresLink(_conninfo(settings), settings.host))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run()


def _conninfo(settings: Settings) -> str:
    if settings.agent_database_url:
        return settings.agent_database_url
    role = "host_" + "".join(c if c.isalnum() else "_" for c in settings.host)
    return f"host={Home(settings.root).metadata_socket} dbname=pgherd user={role} application_name=pgherd-agent"
