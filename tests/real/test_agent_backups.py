"""Repositories and backups of a node by the real agent: real PostgreSQL, real pgBackRest, real S3."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgherd import sealing, unprivileged
from pgherd.agent import backups as care
from pgherd.drivers import pgbackrest
from pgherd.drivers.postgres import NotReady
from pgherd.spec import S3, Backup, Job, JobStatus, NodeSpec, NodeStatus, Pool, Repository, RepositoryStatus
from tests.plugins.host import RunningHost, rooted, until
from tests.plugins.objects import Bucket, Stored

pytestmark = pytest.mark.repository
CIPHER = "opens-the-repository"


def repository(host: RunningHost, bucket: Bucket | None = None, **changes: Any) -> Repository:
    public, bucket = sealing.public_key(host.agent.host.private_key), bucket or host.bucket
    s3 = None
    if bucket is not None:
        key, secret = sealing.seal(public, bucket.key), sealing.seal(public, bucket.secret)
        s3 = S3(bucket.endpoint, bucket.bucket, bucket.region, key, secret, prefix="tests", ca=bucket.ca)
    kind = "s3" if bucket else "directory"
    made = Repository(secrets.token_hex(8), kind, sealing.seal(public, CIPHER), 2, s3)
    return msgspec.structs.replace(made, **changes)


def with_repository(host: RunningHost, bucket: Bucket | None = None, **changes: Any) -> NodeSpec:
    kept = repository(host, bucket)
    return host.running(repository=kept, service_id=kept.service_id, **changes)


def stored(host: RunningHost, kept: Repository | None, bucket: Bucket | None = None) -> Stored:
    """The files of a repository that `repository` made."""
    assert kept is not None
    bucket = (bucket or host.bucket) if kept.kind == "s3" else None
    return Stored(host.home / "backups" / kept.service_id / "repo", bucket, f"tests/{kept.service_id}")


@pytest.fixture(params=["directory", "s3"])
def node(request: pytest.FixtureRequest, host: RunningHost) -> Iterator[NodeSpec]:
    if request.param == "directory" and host.bucket is not None:
        pytest.skip("on a directory it is shown without --repository s3")
    made = with_repository(host, request.getfixturevalue("bucket") if request.param == "s3" else None)
    yield made
    remove(host, made)


def remove(host: RunningHost, node: NodeSpec) -> None:
    last = max((s.generation for s in host.link.history if s.node_id == node.node_id), default=node.generation)
    host.change(msgspec.structs.replace(node, generation=max(last, node.generation)), desired="absent", jobs=[])
    host.until(node, lambda s: s.state == "absent", 60)


def seen(host: RunningHost, node: NodeSpec, reached: Any, seconds: float = 60) -> RepositoryStatus:
    status = host.until(node, lambda s: s.repository is not None and reached(s.repository), seconds)
    assert status.repository is not None
    return status.repository


def ready(host: RunningHost, node: NodeSpec) -> RepositoryStatus:
    return seen(host, node, lambda r: r.ready)


def start(host: RunningHost, node: NodeSpec, **how: Any) -> tuple[NodeSpec, Job]:
    job = Job(secrets.token_hex(8), "backup", **how)
    return host.change(node, jobs=[job]), job


def ended(host: RunningHost, node: NodeSpec, job: Job, seconds: float = 60) -> tuple[JobStatus, NodeStatus]:
    def found(status: NodeStatus) -> list[JobStatus]:
        return [one for one in status.jobs if one.id == job.id and one.state in ("done", "failed")]

    status = host.until(node, lambda s: bool(found(s)), seconds)
    return found(status)[0], status


def back_up(host: RunningHost, node: NodeSpec, **how: Any) -> tuple[NodeSpec, list[Backup]]:
    node, job = start(host, node, **how)
    done, status = ended(host, node, job)
    assert (done.state, done.progress) == ("done", 1.0), done
    assert status.repository is not None
    return host.change(node, jobs=[]), status.repository.backups


def write(host: RunningHost, node: NodeSpec, rows: int = 1000) -> None:
    host.sql(node, "create table if not exists public.t (i int, words text);")
    host.sql(node, f"insert into public.t select i, repeat(md5(i::text), 6) from generate_series(1, {rows}) i;")


def switch(host: RunningHost, node: NodeSpec) -> str:
    """End a segment; its name."""
    return host.sql(node, "select pg_walfile_name(pg_switch_wal());").strip()


def archived(host: RunningHost, node: NodeSpec) -> list[str]:
    """The segments in the repository."""
    program, config = host.agent.host.repositories.installed(), host.directory(node) / "config"
    argv = pgbackrest.command(program, config, "repo-ls", "--recurse", "--output=json")
    answer = unprivileged.run(host.account(node), [*argv, "archive"], timeout=60)
    assert answer.code == 0, answer
    names = [Path(name).name for name in json.loads(answer.out)]
    return sorted({name[:24] for name in names if len(name) > 40 and not name.endswith(".backup")})


def assert_no_hole(names: list[str], last: str) -> None:
    numbers = [int(name[8:16], 16) * 256 + int(name[16:24], 16) for name in names]
    assert numbers == list(range(1, len(numbers) + 1)) and last in names, names


def test_a_job_waits_for_no_convergence(host: RunningHost, caplog: pytest.LogCaptureFixture) -> None:
    """A spec that has other jobs and nothing else new is in force as it is; with anything else new it is converged."""
    caplog.set_level("INFO", "pgherd.agent")
    node = with_repository(host)
    caplog.clear()
    node, _ = back_up(host, node)
    host.until_in_force(node)
    assert not [line for line in caplog.messages if "generation" in line]
    node = host.change(node, jobs=[Job(secrets.token_hex(8), "backup")], settings={"deadlock_timeout": 1234})
    host.until_in_force(node)
    assert host.sql(node, "show deadlock_timeout;").strip() == "1234ms"
    assert [line for line in caplog.messages if f"running, generation {node.generation}" in line]
    remove(host, node)


def test_segments_from_the_first_second(host: RunningHost, node: NodeSpec) -> None:
    """What is written before the repository is there waits for it; nobody waits for the repository."""
    assert host.link.history[-1].repository is None or not host.link.statuses[node.node_id].repository.ready  # type: ignore[union-attr]
    write(host, node)
    first = switch(host, node)
    ready(host, node)
    write(host, node)
    last = switch(host, node)
    seen(host, node, lambda r: r.wal >= last and r.waiting == 0 and not r.problem and r.archived_at)
    assert first == "000000010000000000000001"
    assert_no_hole(archived(host, node), last)


def test_backups_are_taken_listed_and_expired(host: RunningHost, node: NodeSpec) -> None:
    write(host, node)
    node, [first] = back_up(host, node, full=True)
    assert first.size > 20 << 20 and 0 < first.stored < first.size and not first.damaged and not first.parent
    node, backups = back_up(host, node)
    assert [b.parent for b in backups] == ["", first.name]
    node, backups = back_up(host, node, full=True, scheduled=True)
    assert len(backups) == 3, "two are kept, for a day at least"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(care, "_DAY", 0)
        node, backups = back_up(host, node, full=True)
    assert [b.parent for b in backups] == ["", ""] and first.name < backups[0].name
    assert host.link.statuses[node.node_id].jobs[0].progress == 1.0


def test_nothing_is_left(host: RunningHost, bucket: Bucket, node: NodeSpec) -> None:
    node, _ = back_up(host, node, full=True)
    directory = host.home / "backups" / str(node.repository and node.repository.service_id)
    assert directory.exists()
    before = bucket.objects()
    in_bucket = node.repository is not None and node.repository.kind == "s3"
    assert CIPHER not in subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
    remove(host, node)
    assert not directory.exists()
    assert not list((host.home / "agent/jobs").glob(f"{node.node_id}.*"))
    assert not list((host.home / "s6").glob(f"*{node.node_id}*"))
    if in_bucket:
        assert bucket.objects() < before - 4


def processes(host: RunningHost, node: NodeSpec) -> list[int]:
    """The processes of the backup that runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if (
                "pgbackrest" in words
                and words.rstrip("\0").split("\0")[-1].startswith("backup")
                and node.node_id in words
            ):
                found.append(int(entry.name))
    return found


def test_segments_are_archived_in_time_after_a_restart_too(host: RunningHost) -> None:
    """PostgreSQL's checkpointer sleeps up to five minutes after a start before it heeds archive_timeout."""
    kept = repository(host, archive_timeout=1)
    node = host.running(repository=kept, service_id=kept.service_id)
    ready(host, node)
    host.agent.supervisor.restart(f"node-{node.node_id}")

    def awake() -> bool:
        with contextlib.suppress(NotReady):
            return host.sql(node, "select pg_conf_load_time() > pg_postmaster_start_time();").strip() == "t"
        return False

    until(awake)
    write(host, node)
    segment = host.sql(node, "select pg_walfile_name(pg_current_wal_lsn());").strip()
    archived = f"select coalesce(last_archived_wal >= '{segment}', false) from pg_stat_archiver;"
    until(lambda: host.sql(node, archived).strip() == "t", 20)
    remove(host, node)


@pytest.mark.parametrize("at", ["start", "middle", "wrapper"])
def test_a_killed_backup_is_taken_all_the_same(host: RunningHost, at: str) -> None:
    """Once, however it dies; no lock is left that would block the next one."""
    node = with_repository(host)
    ready(host, node)
    write(host, node, 300_000)
    holder = host.home / "s6" / f"job-{node.node_id}-backup" / "holder"
    node, job = start(host, node, full=True)
    if at == "wrapper":
        until(lambda: holder.exists() and holder.read_text().strip() and processes(host, node))
        os.kill(int(holder.read_text()), signal.SIGKILL)
    else:
        found = until(lambda: processes(host, node))
        if at == "middle":
            host.until(node, lambda s: any(j.progress > 0.1 or j.state == "done" for j in s.jobs))
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    done, status = ended(host, node, job)
    assert done.state == "done", done
    assert status.repository is not None and len(status.repository.backups) == 1
    node, backups = back_up(host, host.change(node, jobs=[]), full=True)
    assert len(backups) == 2
    remove(host, node)


def test_a_backup_that_was_killed_at_its_very_end_is_not_taken_twice(
    host: RunningHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup is in the repository, but the program is killed before it says so."""
    node = with_repository(host)
    ready(host, node)
    take = pgbackrest.backup
    monkeypatch.setattr(pgbackrest, "backup", lambda *a, **k: ["sh", "-c", '"$@"; kill -9 $$', "sh", *take(*a, **k)])
    for number in (1, 2):
        node, backups = back_up(host, node, full=True)
        assert len(backups) == number
    remove(host, node)


def test_a_backup_outlives_the_agent(host: RunningHost) -> None:
    """The next agent finds it: the same process, not a second one."""
    node = with_repository(host)
    ready(host, node)
    write(host, node, 300_000)
    node, job = start(host, node, full=True)
    before = until(lambda: processes(host, node))
    host.stop()
    host.start()
    after = processes(host, node)  # it may have more by now, or have ended
    assert not after or set(before) & set(after)
    done, status = ended(host, node, job)
    record = json.loads((host.home / "agent/jobs" / f"{node.node_id}.backup" / "job.json").read_text())
    assert (done.state, record["tries"]) == ("done", 1)
    assert status.repository is not None and len(status.repository.backups) == 1
    remove(host, node)


def test_a_backup_waits_for_no_pooler(host: RunningHost) -> None:
    """A PgBouncer that cannot start, because another program has its port, keeps nobody from backing up."""
    node = with_repository(host)
    ready(host, node)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", node.port + 1))
        other.listen()
        node = host.change(node, pools=[Pool("p", "defaultdb", "transaction", 1)])
        status = host.until(node, lambda s: "Another program listens" in s.reason)
        assert (status.state, status.step, status.refused) == ("running", "pools", 0)
        node, job = start(host, node, full=True)
        done, status = ended(host, node, job)
        assert done.state == "done" and "Another program listens" in status.reason, status
    host.until(node, lambda s: bool(s.pooler), 30)
    remove(host, host.change(node, jobs=[]))


def test_a_job_ends_with_its_spec(host: RunningHost) -> None:
    """What is not asked for any more is killed and forgotten, and blocks nothing."""
    node = with_repository(host)
    ready(host, node)
    write(host, node, 300_000)
    node, _ = start(host, node, full=True)
    until(lambda: processes(host, node))
    node = host.change(node, jobs=[])
    until(lambda: not processes(host, node))
    host.until(node, lambda s: not s.jobs)
    node, backups = back_up(host, node, full=True)
    assert len(backups) in (1, 2)  # the first may have come to its end just before
    remove(host, node)


@rooted
def test_two_services_never_share_a_repository(host: RunningHost) -> None:
    node = with_repository(host)
    ready(host, node)
    assert node.repository is not None
    other = host.spec(repository=node.repository, service_id=node.service_id)
    host.link.wish(other)
    status = host.until(other, lambda s: s.state == "failed")
    assert "another OS user" in status.reason
    for place in (host.home / "backups" / node.service_id / "repo", host.directory(node) / "config/pgbackrest.conf"):
        answer = unprivileged.run(host.account(other), ["ls", "-l", str(place)])
        assert answer.code != 0 and "Permission denied" in answer.err
    node, backups = back_up(host, node, full=True)
    assert len(backups) == 1
    host.link.wish(msgspec.structs.replace(other, desired="absent", generation=2, repository=None))
    host.until(other, lambda s: s.state == "absent")
    remove(host, node)


@contextlib.contextmanager
def foreign_cluster(host: RunningHost, node: NodeSpec) -> Iterator[tuple[Path, Path, Callable[[str], str]]]:
    """Another cluster of the node's OS user, which archives into the node's repository: its data, the directory of its
    pgBackRest's configuration, and its psql."""
    place, account = host.directory(node) / "data" / "foreign", host.account(node)
    pgdata, programs, kept = place / "pgdata", host.agent.programs[node.version].bin, host.agent.host.repositories

    def as_owner(*argv: object, timeout: float = 60) -> str:
        answer = unprivileged.run(account, [str(word) for word in argv], timeout=timeout)
        assert answer.code == 0, answer
        return answer.out.decode()

    as_owner("mkdir", "-p", place / "spool")
    as_owner(programs / "initdb", "-D", pgdata, "-U", "postgres", "--no-sync")
    text = (host.directory(node) / "config" / pgbackrest.CONFIG).read_text()
    own = {"pg1-path": pgdata, "pg1-socket-path": place, "spool-path": place / "spool", "lock-path": place / "lock"}
    for name, value in own.items():
        text = re.sub(f"(?m)^{name}=.*$", f"{name}={value}", text)
    unprivileged.run(account, ["tee", str(place / pgbackrest.CONFIG)], stdin=text.encode())
    push = shlex.join(pgbackrest.command(kept.installed(), place, "archive-push"))
    settings = {"archive_mode": "on", "archive_command": f"{push} %p", "unix_socket_directories": place}
    settings |= {"listen_addresses": "", "port": node.port}
    for name, value in settings.items():
        as_owner("sh", "-c", 'printf "%s\n" "$1" >>"$2"', "sh", f"{name} = '{value}'", pgdata / "postgresql.auto.conf")
    as_owner(programs / "pg_ctl", "-D", pgdata, "-l", place / "log", "-w", "start")
    login = [programs / "psql", "-XqAt", "-h", place, "-p", node.port, "-U", "postgres", "-d", "postgres", "-c"]
    try:
        yield pgdata, place, lambda statement: as_owner(*login, statement).strip()
    finally:
        as_owner(programs / "pg_ctl", "-D", pgdata, "-m", "immediate", "-w", "stop")


def test_two_clusters_of_one_user_never_share_a_repository(host: RunningHost) -> None:
    """Row B6: what the OS does not keep apart pgBackRest does, by the clusters' system identifiers."""
    node = with_repository(host)
    ready(host, node)
    write(host, node)
    node, [first] = back_up(host, node, full=True)
    last = switch(host, node)
    seen(host, node, lambda r: r.wal >= last and r.waiting == 0)
    files, program = stored(host, node.repository), host.agent.host.repositories.installed()
    before = {name: files.read(name) for name in files.names()}
    with foreign_cluster(host, node) as (pgdata, config, ask):
        ask("create table foreign_rows as select generate_series(1, 1000)")
        ask("select pg_switch_wal()")
        refused = "select failed_count > 1 and archived_count = 0 from pg_stat_archiver"
        until(lambda: ask(refused) == "t", 30, lambda: ask("select a from pg_stat_archiver a"))
        segment = str(pgdata / "pg_wal" / "000000010000000000000001")
        for argv in (
            pgbackrest.stanza_create(program, config),
            pgbackrest.backup(program, config, full=True, fast=True),
            [*pgbackrest.command(program, config, "archive-push", "--no-archive-async"), segment],
        ):
            answer = unprivileged.run(host.account(node), argv, timeout=60)
            assert answer.code != 0 and "not match" in answer.out.decode() + answer.err, (argv[-1], answer)
    assert {name: files.read(name) for name in before} == before
    write(host, node)
    last = switch(host, node)
    seen(host, node, lambda r: r.wal >= last and r.waiting == 0 and not r.problem and not r.gap_at)
    assert_no_hole(archived(host, node), last)
    segments = [Path(name).name[:24] for name in files.names("archive/main/") if re.search("/[0-9A-F]{24}-", name)]
    assert len(segments) == len(set(segments)), "no segment is there twice"
    node, backups = back_up(host, node)
    assert [b.parent for b in backups] == ["", first.name]
    remove(host, node)
