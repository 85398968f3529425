"""NodeSpec and NodeStatus: the only words that the control plane and the hosts share.

A spec is data: ids, sizes and settings from the contract; never a path, a command or a free parameter.
The host decides what to do about it. `generation` only grows; a host refuses an older one.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

#: Version of the parameters that the platform itself sets on every node. A service whose spec carries
#: an older one is rolled to this one by the health reconciler.
PLATFORM = 3

#: Connections of a service that no pool gets: PostgreSQL keeps `SUPERUSERS` for the platform, and PgBouncer looks users
#: up through `LOOK_UPS`.
SUPERUSERS = 3
LOOK_UPS = 2

#: Percent of a node's disk: from here on the owner is told; new transactions are read-only; they may write again below.
DISK_NOTICE, DISK_READ_ONLY, DISK_WRITABLE = 90, 97, 95


def disk_limit(of_plan: int, capacity: int) -> int:
    """Bytes that a node may fill, which every percent of its disk is of: of its plan's disk, or of the file system
    of its own (`capacity`; 0: it has none) when that is smaller."""
    return min((size for size in (of_plan, capacity) if size), default=0)


Desired = Literal["running", "stopped", "kept", "absent"]
NodeState = Literal["setting_up", "starting", "running", "stopped", "failed", "kept", "absent"]
Setting = bool | int | float | str
JobName = Literal["backup", "restore", "verify"]
JobState = Literal["waiting", "running", "done", "failed"]


class Memory(msgspec.Struct, frozen=True):
    """Sizes in MiB, computed by the control plane from the plan and capped by what the host has."""

    shared_buffers: int
    effective_cache_size: int
    maintenance_work_mem: int
    work_mem: int


class Admin(msgspec.Struct, frozen=True):
    """The service's admin role. `verifier` is a SCRAM-SHA-256 verifier as pg_authid stores it, sealed for the host."""

    name: str
    verifier: str


class Tls(msgspec.Struct, frozen=True):
    """PEM texts. `key` is sealed for the host (see `sealing`)."""

    certificate: str
    key: str


class Task(msgspec.Struct, frozen=True):
    """One change of the cluster's roles or databases, carried out once; `id` is the operation's.

    Truth is PostgreSQL: what tenants do in SQL stays, so a spec does not list roles and databases, it asks for
    single changes. Each is done so that doing it again changes nothing. `verifier` (create-user, set-password) is
    sealed for the host; `owner` (create-database, drop-user) gets the database or the objects of a dropped user.
    """

    id: str
    kind: Literal["create-user", "drop-user", "set-password", "set-replication", "create-database", "drop-database"]
    name: str
    verifier: str = ""
    replication: bool = False
    owner: str = ""
    lc_collate: str = ""
    lc_ctype: str = ""


class TaskResult(msgspec.Struct, frozen=True):
    """How a task ended: `refused` says why in `reason`, in words for the tenant."""

    id: str
    state: Literal["done", "refused"]
    reason: str = ""


class Pool(msgspec.Struct, frozen=True):
    """A PgBouncer pool. An empty `username`: clients log in as themselves."""

    name: str
    database: str
    mode: Literal["session", "transaction", "statement"]
    size: int
    username: str = ""


class S3(msgspec.Struct, frozen=True):
    """A bucket of an S3-compatible server. `key` and `secret` are sealed for the host; `ca`: PEM, else the system's."""

    endpoint: str
    bucket: str
    region: str
    key: str
    secret: str
    prefix: str = ""
    ca: str = ""
    path_style: bool = True


class Repository(msgspec.Struct, frozen=True):
    """All that a host must know of a service's backup repository, be it its own or one that it restores from.

    `cipher` is the passphrase, sealed for the host. `keep`: how many backups are kept. `archive_timeout`: seconds after
    which a segment that was written to is archived though it is not full. `mark`: of all this before it was sealed.
    """

    service_id: str
    kind: Literal["directory", "s3"]
    cipher: str
    keep: int
    s3: S3 | None = None
    archive_timeout: int = 60
    mark: str = ""


class Job(msgspec.Struct, frozen=True):
    """Long work of a host, carried out once; `id` is the operation's. Of each name a node has one at a time.

    `full`: back up everything, not only what changed; `scheduled`: nobody waits for it.
    """

    id: str
    name: JobName
    full: bool = False
    scheduled: bool = False


class About(msgspec.Struct, frozen=True):
    """What the control plane knows a service by. No host acts on it: it comes back when the metadata was lost."""

    organization: str
    service: str
    wish: dict[str, Any]


class Origin(msgspec.Struct, frozen=True):
    """What a node's data is made from in place of what it has or of an empty cluster, once; `id` is the operation's.

    While `source`, a node of the same host, runs and no `target` is given, its files are copied. Otherwise the backups
    and the archive of `repository` (None: the node's own) are restored, up to `target` (RFC 3339 in UTC; empty: all of
    them) on `timeline` (0: the newest). `undo`: the data comes back that an earlier origin put aside. `own`: it is the
    service's own data, in which subscriptions go on. `back`: what the node still has is taken as it is, as long as
    its deletion has not begun: it may hold more than the archive.
    """

    id: str
    source: str = ""
    repository: Repository | None = None
    target: str = ""
    timeline: int = 0
    undo: bool = False
    own: bool = False
    back: bool = False


class OriginStatus(msgspec.Struct, frozen=True):
    """Which origin the node's data is from, and since when. `id` is empty for data that the host had to make anew.

    `left` and `timeline`: the timeline before and after, 0: unknown. `until`: the last transaction that was recovered,
    empty: all. `kept`: the origin from before which data is kept, empty: none; `aside`: its bytes. `lost`: why the host
    made it anew.
    """

    id: str = ""
    at: str = ""
    left: int = 0
    timeline: int = 0
    until: str = ""
    aside: int = 0
    lost: str = ""
    kept: str = ""


class NodeSpec(msgspec.Struct, frozen=True):
    """All that a host needs to know about one node.

    `settings` maps PostgreSQL parameter names (flat, as in postgresql.conf) to values of their JSON type;
    sizes carry the unit that the contract documents, already turned into PostgreSQL's (`"64MB"`).
    `restart` counts restarts that were asked for: a node whose PostgreSQL was started under a smaller
    number is restarted once. `memory_bytes` and `cpus` are the plan's, for the node's control group; 0: no limit.
    `pools` are served by PgBouncer on `port` + 1, with the parameters `pooler` (names of
    pgbouncer.ini). One that runs in another version than `pooler_version` is restarted once that one is installed;
    empty: any will do. Without a `repository` nothing is archived. `jobs`: what the host has to do beside that.
    With `timescale` TimescaleDB is preloaded and in defaultdb; with `audit` every database has the extension pgaudit.
    `monitor` is the bcrypt hash, sealed for the host, of the password with which Prometheus reads `port` + 3;
    empty: nothing answers there.
    `confirmed`: the origin from before which nobody wants the data back; the host deletes it, and that of no other.
    `established`: the node has run, so that an empty cluster can only mean that its data is lost.
    """

    node_id: str
    service_id: str
    generation: int
    node_name: str
    desired: Desired
    version: str
    port: int
    memory: Memory
    max_connections: int
    settings: dict[str, Setting]
    ip_filter: list[str]
    loopback: bool
    admin: Admin
    tls: Tls
    disk_bytes: int
    restart: int = 0
    platform: int = PLATFORM
    task: Task | None = None
    pools: list[Pool] = []
    pooler: dict[str, Setting] = {}
    memory_bytes: int = 0
    cpus: int = 0
    timescale: bool = False
    audit: bool = False
    repository: Repository | None = None
    jobs: list[Job] = []
    about: About | None = None
    monitor: str = ""
    pooler_version: str = ""
    origin: Origin | None = None
    confirmed: str = ""
    established: bool = False


class Window(msgspec.Struct, frozen=True):
    """A span of time, RFC 3339 in UTC."""

    start: str
    end: str


class Verification(msgspec.Struct, frozen=True):
    """What came of restoring a backup and looking at all there is; sound when there is no problem.

    `backup` was restored and recovered to `lsn`, and with it to the transaction of `recovered_to`; `wal` was the newest
    archived segment when it began. `rows` were counted. `broken`: no point in time in these spans can be restored.
    `impossible`: why it, or a part of it, could not be carried out; the rest is what was found all the same.
    """

    backup: str = ""
    wal: str = ""
    lsn: str = ""
    recovered_to: str = ""
    seconds: float = 0.0
    databases: int = 0
    tables: int = 0
    rows: int = 0
    problems: list[str] = []
    broken: list[Window] = []
    impossible: str = ""


class JobStatus(msgspec.Struct, frozen=True):
    """How a job stands: `waiting` for its turn on the host, `failed` with `reason`. `progress` goes from 0 to 1.

    `verification`: what a verify job that is done has found, sound or not.
    """

    id: str
    name: JobName
    state: JobState
    reason: str = ""
    progress: float = 0.0
    started_at: str = ""
    ended_at: str = ""
    verification: Verification | None = None


class Backup(msgspec.Struct, frozen=True):
    """One backup in a repository; `name` is pgBackRest's label, times are RFC 3339 in UTC.

    `size`: bytes of the cluster; `stored`: bytes that this backup added to the repository; `parent`: the backup that
    it builds on, empty for a full one. `damaged`: pages with a wrong checksum were met. `wal_start` and `wal_stop`: the
    segments that it needs to be consistent.
    """

    name: str
    started_at: str
    ended_at: str
    size: int
    stored: int
    parent: str = ""
    damaged: bool = False
    wal_start: str = ""
    wal_stop: str = ""


class RepositoryStatus(msgspec.Struct, frozen=True):
    """What the host observed of a service's repository and of the way into it.

    `ready`: it has been made, so that segments go there. `archived_at`: when the last segment, `wal`, arrived;
    `waiting`: segments that did not yet. `gap_at`: when segments were given up last, because too many waited: no point
    in time between the backups around it can be restored. `problem`: why archiving or looking does not work now;
    `trouble`: its part that making the repository or looking into it has met. `lost`: what was lost with a repository
    that was made anew, until there is a backup again.
    """

    ready: bool = False
    backups: list[Backup] = []
    wal: str = ""
    archived_at: str = ""
    waiting: int = 0
    gap_at: str = ""
    problem: str = ""
    trouble: str = ""
    lost: str = ""


class Role(msgspec.Struct, frozen=True):
    """A login role of the tenant as PostgreSQL has it.

    `password` is the first 16 hex digits of the SHA-256 of the verifier in pg_authid (empty: no password), so that the
    control plane can tell whether the password is still the one that it knows.
    """

    name: str
    replication: bool
    password: str = ""


class NodeStatus(msgspec.Struct, frozen=True):
    """What the host observed last.

    `generation` is that of the spec the node was last converged to, and `restart` its number; both are
    the spec's only after its whole effect is in force. `reason` says why a `failed` or `starting` node
    is not running. `refused` is a generation that will not come into force however often it is tried, with
    `reason`; 0: none. `task` is the result of the spec's task, `pooler` the version of the PgBouncer that serves.
    `pending_restart` lists parameters that wait for a restart. `disk_used` in bytes: tables, WAL, temporary files.
    `disk_capacity`: bytes of the file system of its own that its data lies on; 0: it lies on the host's.
    `read_only`: `plan` or `host`, whose disk runs full, when new transactions are read-only because of it.
    """

    node_id: str
    generation: int
    state: NodeState
    step: str = ""
    reason: str = ""
    refused: int = 0
    version: str = ""
    restart: int = 0
    databases: list[str] = []
    users: list[Role] = []
    pending_restart: list[str] = []
    max_connections: int = 0
    disk_used: int = 0
    disk_capacity: int = 0
    read_only: str = ""
    task: TaskResult | None = None
    pooler: str = ""
    observed_at: str = ""
    repository: RepositoryStatus | None = None
    jobs: list[JobStatus] = []
    origin: OriginStatus | None = None


class Recovered(msgspec.Struct, frozen=True):
    """The secrets of a node that only its host still has."""

    verifier: str = msgspec.field(default="")
    tls_key: str = msgspec.field(default="")
    cipher: str = msgspec.field(default="")

    def __repr__(self) -> str:
        return "Recovered(...)"


class UnknownNode(msgspec.Struct, frozen=True):
    """A node that the host has and the metadata does not know, as after it was restored from an older copy.

    `spec` is the last one of it, its secrets sealed for the host; `secrets` is a `Recovered` as JSON, sealed for the
    control plane.
    """

    spec: NodeSpec
    secrets: str
    status: NodeStatus | None = None


class HostFacts(msgspec.Struct, frozen=True):
    """What a host says of itself.

    `versions` maps a major to the full installed version; `listeners` are ports that others listen on. `extensions`
    maps a major to the extensions that tenants may create with the version they get; empty: not installed here. `audit`
    maps a major to the parameters of services that its pgaudit knows.
    `exporter` is the version of the Prometheus exporter; empty: there is none.
    `pooler` is the version of the installed PgBouncer. `locales` are those that a database may have; empty: unknown.
    """

    memory_bytes: int
    cores: int
    versions: dict[str, str]
    listeners: list[int] = []
    rooted: bool = False
    extensions: dict[str, dict[str, str]] = {}
    audit: dict[str, list[str]] = {}
    exporter: str = ""
    pooler: str = ""
    locales: list[str] = []
