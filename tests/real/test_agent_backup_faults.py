"""A repository that is full, fails or lies never stops a database and never loses a segment without saying so."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd import unprivileged
from pgherd.agent import backups as care
from pgherd.drivers import pgbackrest
from pgherd.spec import NodeSpec
from tests.plugins.host import RunningHost, rooted, until
from tests.plugins.objects import Bucket
from tests.real.test_agent_backups import (
    archived,
    assert_no_hole,
    back_up,
    ended,
    ready,
    remove,
    seen,
    start,
    stored,
    switch,
    with_repository,
    write,
)

pytestmark = pytest.mark.repository


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(care, "_AGAIN", 1.0)
    monkeypatch.setattr(pgbackrest, "_IO_TIMEOUT", 3)


@pytest.fixture
def in_s3(host: RunningHost, bucket: Bucket) -> Iterator[NodeSpec]:
    """A service whose repository is in S3."""
    node = with_repository(host, bucket)
    ready(host, node)
    yield node
    bucket.front.fault = None
    remove(host, node)


def test_a_failing_store(host: RunningHost, bucket: Bucket, in_s3: NodeSpec) -> None:
    """The database goes on, the reason is told, and afterwards the archive has no hole."""
    node = in_s3
    for fault in (500, 403, "close", "half", "skew"):
        before, bucket.front.fault = bucket.front.failed, fault
        for _ in range(2):
            write(host, node)
            last = switch(host, node)
        told = seen(host, node, lambda r: r.waiting >= 1 and r.problem, 90)
        assert "WAL segments wait" in told.problem and bucket.secret not in told.problem
        assert bucket.front.failed > before and (fault != "skew" or "TooSkewed" in told.problem), told.problem
        with host.connect(node) as tenant:
            tenant.execute("create table if not exists public.goes_on (i int)")
        bucket.front.fault = None
        write(host, node)
        last = switch(host, node)  # wakes the archiver, which rests a minute after three failures
        seen(host, node, lambda r, last=last: r.wal >= last and r.waiting == 0 and not r.problem and not r.gap_at, 90)
    bucket.front.fault = "slow"
    write(host, node)
    last = switch(host, node)
    with host.connect(node) as tenant:
        tenant.execute("create table public.goes_on_meanwhile (i int)")
    seen(host, node, lambda r: r.wal >= last and r.waiting == 0 and not r.problem and not r.gap_at, 90)
    assert_no_hole(archived(host, node), last)


def test_a_backup_into_a_failing_store_fails_with_the_reason(
    host: RunningHost, bucket: Bucket, in_s3: NodeSpec
) -> None:
    node, _ = back_up(host, in_s3, full=True)
    bucket.front.fault = 403
    node, job = start(host, node, full=True)
    done, _ = ended(host, node, job, 90)
    assert done.state == "failed" and "403" in done.reason, done
    bucket.front.fault = None
    node, backups = back_up(host, host.change(node, jobs=[]), full=True)
    assert len(backups) == 2


@pytest.fixture
def small(host: RunningHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeSpec]:
    """A service whose repository is a file system of 24 MiB, and where few segments may wait."""
    if host.bucket is not None:
        pytest.skip("a bucket is never full")
    monkeypatch.setattr(care, "queue", lambda spec: 64 << 20)
    node = with_repository(host)
    ready(host, node)
    remove_from = repo(host, node)
    account = host.account(node)
    kept = subprocess.run(["cp", "-a", f"{remove_from}/.", f"{remove_from}.aside"], check=False)
    assert kept.returncode == 0
    options = f"size=24m,uid={account.uid},gid={account.gid},mode=0750"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", remove_from], check=True)
    subprocess.run(["cp", "-a", f"{remove_from}.aside/.", remove_from], check=True)
    yield node
    subprocess.run(["umount", "-l", remove_from], check=True)
    remove(host, node)


def repo(host: RunningHost, node: NodeSpec) -> Path:
    return host.home / "backups" / node.service_id / "repo"


def fill(host: RunningHost, node: NodeSpec) -> None:
    """Leave no room in the repository's file system."""
    argv = ["dd", "if=/dev/zero", "bs=4k", f"of={repo(host, node)}/fill"]
    assert "No space left" in unprivileged.run(host.account(node), argv).err


def wal_bytes(host: RunningHost, node: NodeSpec) -> int:
    return int(host.sql(node, "select sum(size) from pg_ls_waldir();"))


def test_what_waits_for_a_repository_that_cannot_be_made_is_bounded(
    host: RunningHost, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong credentials from the first second on; and a segment is only given up where that can be told."""
    monkeypatch.setattr(care, "queue", lambda spec: 64 << 20)
    bucket.front.fault = 403
    node = with_repository(host, bucket)
    note = host.directory(node) / "data/spool/given-up.new"
    deny(host, note)
    for _ in range(8):
        write(host, node)
        switch(host, node)
    told = seen(host, node, lambda r: r.waiting == 8 and r.problem, 60)
    assert not told.ready and not told.gap_at and "403" in told.problem, told
    note.unlink()
    switch(host, node)  # wakes the archiver, which rests a minute after three failures
    told = seen(host, node, lambda r: r.waiting == 4 and r.gap_at, 90)
    assert not told.ready and "403" in told.problem
    bucket.front.fault = None
    ready(host, node)
    last = switch(host, node)
    seen(host, node, lambda r: r.wal >= last and r.waiting == 0 and not r.problem, 90)
    node, backups = back_up(host, node, full=True)
    assert backups[0].started_at >= told.gap_at
    remove(host, node)


def deny(host: RunningHost, note: Path) -> None:
    """Let there be no room for the note."""
    script, account = 'mkdir -p "${1%/*}" && ln -sf /dev/full "$1"', host.agent.slots.account(note.parents[2])
    assert unprivileged.run(account, ["/bin/sh", "-c", script, "sh", str(note)]).code == 0


@rooted
def test_a_full_repository(host: RunningHost, small: NodeSpec) -> None:
    """Segments wait up to the bound, then are given up, which is told; a backup afterwards closes the matter."""
    node, [first] = back_up(host, small, full=True)
    fill(host, node)
    write(host, node)
    switch(host, node)
    told = seen(host, node, lambda r: r.waiting and r.problem, 60)
    assert not told.gap_at and "space" in told.problem.lower(), told
    note = host.directory(node) / "data/spool/given-up.new"
    deny(host, note)
    for _ in range(8):
        write(host, node, 100)
        switch(host, node)
    log = host.home / "log" / f"node-{node.node_id}" / "current"
    until(lambda: "dropped WAL file" in log.read_text(errors="replace"), 90)
    assert seen(host, node, lambda r: r.waiting >= 8).gap_at == "", "none is given up untold"
    note.unlink()
    switch(host, node)
    told = seen(host, node, lambda r: bool(r.gap_at), 90)
    assert wal_bytes(host, node) < 400 << 20
    assert host.sql(node, "select count(*) from public.t;").strip() == "1800"
    (repo(host, node) / "fill").unlink()
    # While segments are being given up, so would be the first one of a backup that begins.
    switch(host, node)  # wakes the archiver, which rests a minute after three failures
    seen(host, node, lambda r: r.waiting == 0, 90)
    node, backups = back_up(host, node, full=True)
    assert backups[-1].started_at >= told.gap_at >= first.started_at
    write(host, node)
    last = switch(host, node)
    seen(host, node, lambda r: r.wal >= last and r.waiting == 0 and not r.problem)
    assert last in archived(host, node)


def look(host: RunningHost, node: NodeSpec) -> None:
    """Into the repository, at once."""
    host.agent.nodes[node.node_id].care.look_at = 0.0


def test_a_repository_that_cannot_be_read_is_told_while_it_takes_segments(host: RunningHost) -> None:
    node, _ = back_up(host, with_repository(host), full=True)
    files = stored(host, node.repository)
    infos = {name: files.read(name) for name in files.names("backup/main/backup.info")}
    assert len(infos) == 2
    for name in infos:
        files.write(name, b"nonsense")
    look(host, node)
    seen(host, node, lambda r: r.trouble)
    write(host, node)
    last = switch(host, node)
    told = seen(host, node, lambda r: r.wal >= last and r.waiting == 0)
    assert "cannot be read" in told.problem or "repository" in told.problem, told
    for name, content in infos.items():
        files.write(name, content)
    seen(host, node, lambda r: not r.problem)
    remove(host, node)


def test_a_lost_repository_is_made_anew(host: RunningHost) -> None:
    """With the loss stated until there is a backup again."""
    node, [_] = back_up(host, with_repository(host), full=True)
    stored(host, node.repository).clear()
    look(host, node)
    told = seen(host, node, lambda r: r.lost)
    assert "1 backup and" in told.lost and told.backups == []
    write(host, node)
    last = switch(host, node)
    seen(host, node, lambda r: r.wal >= last and r.waiting == 0 and not r.problem and r.lost, 90)
    assert last in archived(host, node)
    node, backups = back_up(host, node, full=True)
    assert len(backups) == 1
    seen(host, node, lambda r: not r.lost and r.backups == backups)
    remove(host, node)


def test_a_directory_that_may_be_out_of_sight_only_is_not_made_anew(host: RunningHost) -> None:
    if host.bucket is not None:
        pytest.skip("a store is there or does not answer")
    node, [_] = back_up(host, with_repository(host), full=True)
    shutil.rmtree(repo(host, node).parent)
    look(host, node)
    told = seen(host, node, lambda r: "mounted" in r.problem)
    assert not repo(host, node).parent.exists() and len(told.backups) == 1
    # The way of docs/backups.md.
    node = host.change(node, cpus=1)
    host.until_in_force(node)
    (host.directory(node) / "config" / pgbackrest.READY).unlink()
    seen(host, node, lambda r: r.lost and not r.problem, 90)
    node, backups = back_up(host, node, full=True)
    assert len(backups) == 1
    remove(host, node)


@rooted
def test_a_damaged_page_is_told_and_replaces_no_sound_backup(host: RunningHost) -> None:
    node = with_repository(host)
    write(host, node, 5000)
    path = host.sql(node, "checkpoint; select pg_relation_filepath('public.t');").strip()
    node, [sound] = back_up(host, node, full=True)
    with open(host.directory(node) / "data/pgdata" / path, "r+b") as file:
        file.seek(8192 + 4000)
        byte = file.read(1)
        file.seek(8192 + 4000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(care, "_DAY", 0)
        for _ in range(2):
            node, backups = back_up(host, node, full=True)
    assert [b.damaged for b in backups] == [False, True, True] and backups[0] == sound
    remove(host, node)
