"""Backups are proven by the real agent: what is sound is found sound, a flipped bit is found wherever it is."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgherd.agent import disk
from pgherd.drivers import proof_child
from pgherd.drivers.proof_child import SEGMENT
from pgherd.spec import Job, JobStatus, NodeSpec, Verification
from tests.plugins.host import RunningHost, until
from tests.plugins.objects import Stored
from tests.real.test_agent_backups import back_up, repository, stored

pytestmark = pytest.mark.repository

#: An index whose expression looks at who evaluates it: amcheck must not do so as the platform's superuser.
TABLES = """
create table t as select i, repeat(md5(i::text), 8) as filler from generate_series(1, 5000) i;
create function guarded(int) returns int immutable language plpgsql as $$ begin
  if (select rolsuper from pg_roles where rolname = current_user) then raise exception 'as a superuser'; end if;
  return $1; end $$;
create index on t (guarded(i));
create table s as select i from generate_series(1, 10) i;
"""


@pytest.fixture(scope="module")
def node(host: RunningHost) -> Iterator[NodeSpec]:
    """A node with a full backup, another one on it, and segments before, between and after."""
    kept = repository(host)
    node = host.running(repository=kept, service_id=kept.service_id)
    with host.connect(node) as connection:
        connection.execute(TABLES)
        node, _ = back_up(host, node, full=True)
        for i in range(2):
            connection.execute(f"insert into s values ({i})")
            archive(host, node)
        node, _ = back_up(host, node, full=True)
        connection.execute("insert into s values (99)")
        archive(host, node)
    yield node


def archive(host: RunningHost, node: NodeSpec) -> None:
    """Every segment until now is in the repository."""
    last = host.sql(node, "select pg_walfile_name(pg_switch_wal());").strip()
    until(lambda: last in [name for name, _ in segments(host, node)], 30, lambda: f"{last} is not archived")


def files(host: RunningHost, node: NodeSpec) -> Stored:
    return stored(host, node.repository)


def segments(host: RunningHost, node: NodeSpec) -> list[tuple[str, str]]:
    """Each with the name of its file."""
    found = files(host, node).names("archive/main/")
    matches = ((SEGMENT.match(name.removeprefix("archive/main/")), name) for name in found if name.endswith(".zst"))
    return sorted((match[1], name) for match, name in matches if match)


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def begin(host: RunningHost, node: NodeSpec) -> NodeSpec:
    return host.change(host.link.wished[node.node_id], jobs=[Job(secrets.token_hex(8), "verify")])


def status_of(host: RunningHost, node: NodeSpec) -> JobStatus | None:
    status = host.link.statuses.get(node.node_id)
    return next((job for job in status.jobs if job.id == node.jobs[0].id), None) if status else None


def ended(host: RunningHost, node: NodeSpec) -> Verification:
    def over() -> Any:
        found = status_of(host, node)
        return found if found and found.state in ("done", "failed") else None

    found = until(over, 90, lambda: f"last: {host.link.statuses[node.node_id].jobs}")
    assert found.state == "done", found
    assert leftovers(host, node) == []
    return found.verification


def leftovers(host: RunningHost, node: NodeSpec) -> list[str]:
    """Directories and processes of a proof."""
    directory = host.directory(node)
    places = [directory / "data/proof", directory / "data/proof.json", directory / "run/p"]
    found = [str(place) for place in places if place.exists()]
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = line.read_bytes()
        except OSError:
            continue
        if b"data/proof/pgdata" in text and node.node_id.encode() in text:
            found.append(text.decode(errors="replace"))
    return found


def verified(host: RunningHost, node: NodeSpec) -> tuple[NodeSpec, Verification]:
    node = begin(host, node)
    return node, ended(host, node)


def test_sound(host: RunningHost, node: NodeSpec) -> None:
    status = host.link.statuses[node.node_id]
    newest = segments(host, node)[-1][0]
    acknowledged = host.directory(node) / "data/spool/archive/main/acknowledged"
    acknowledged.mkdir()
    node, found = verified(host, node)
    acknowledged.rmdir()  # the archiver would have waited for what is gone
    assert found.problems == [] and found.broken == [] and not found.impossible
    assert status.repository and found.backup == status.repository.backups[-1].name
    assert found.wal == newest and found.lsn and found.recovered_to
    assert (found.databases, found.tables, found.rows) == (3, 2, 5000 + 10 + 3) and found.seconds > 0
    assert host.sql(node, "select count(*) from pg_extension where extname = 'amcheck'") == "0\n"


def test_no_room(host: RunningHost, node: NodeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk has no room for is not begun; all else is looked at."""
    monkeypatch.setattr(disk, "kept_free", lambda cluster, percent: 1 << 60)
    node = begin(host, node)
    status = until(lambda: (s := status_of(host, node)) and s.state == "failed" and s, 60)
    assert status.reason.startswith("Not enough disk to restore") and status.verification.impossible == status.reason
    assert status.verification.problems == [] and status.verification.backup
    assert leftovers(host, node) == []


def test_a_service_above_half_of_its_disk_stays_writable(host: RunningHost, node: NodeSpec) -> None:
    """The copy is as large as the service; a service that is read-only would lose its writers."""
    until(lambda: host.used(node))
    used = host.used(node)
    node = host.change(host.link.wished[node.node_id], disk_bytes=used * 5 // 4)
    host.until_in_force(node)
    before, seen = len(host.link.history), host.agent.watch.meters[node.node_id].at
    node, found = verified(host, node)
    assert found.problems == [] and not found.impossible
    assert host.agent.watch.meters[node.node_id].at > seen, "it was measured meanwhile"
    assert {status.read_only for status in host.link.history[before:] if status.node_id == node.node_id} == {""}
    node = host.change(node, disk_bytes=8 << 30, jobs=[])
    host.until_in_force(node)


def test_a_proof_that_says_nothing_is_no_proof(
    host: RunningHost, node: NodeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = host.home / "silent.py"
    silent.write_text("")
    monkeypatch.setattr(proof_child, "__file__", str(silent))
    node = begin(host, node)
    status = until(lambda: (s := status_of(host, node)) and s.state in ("done", "failed") and s, 60)
    assert (status.state, status.reason) == ("failed", "It ended without saying what it found.")


def test_stopped(host: RunningHost, node: NodeSpec) -> None:
    """A stop ends a proof, and nothing of it is left meanwhile."""
    node = begin(host, node)
    until((host.directory(node) / "data/proof/postgresql.conf").exists, 60)
    node = host.change(node, desired="stopped", jobs=[])
    host.until_in_force(node, 60)
    assert leftovers(host, node) == []
    node = host.change(node, desired="running")
    host.until_in_force(node, 60)


def test_killed_and_withdrawn(host: RunningHost, node: NodeSpec) -> None:
    """A killed proof is run again; one that nobody wants any more leaves neither process nor file."""
    node = begin(host, node)
    place = host.directory(node) / "data/proof/postgresql.conf"
    until(place.exists, 60, lambda: str(host.link.statuses[node.node_id].jobs))
    os.kill(int((host.home / "s6" / f"job-{node.node_id}-verify" / "holder").read_text()), signal.SIGKILL)
    assert ended(host, node).problems == []
    node = begin(host, node)
    until(place.exists, 60)
    host.stop()
    host.start()
    node = host.change(node, jobs=[])
    until(lambda: not leftovers(host, node), 30, lambda: str(leftovers(host, node)))


def test_a_flipped_bit_in_the_living_cluster(host: RunningHost, node: NodeSpec) -> None:
    host.sql(node, "checkpoint;")
    with host.connect(node) as connection:
        relation = connection.execute("select pg_relation_filepath('t')").fetchone()
    assert relation is not None
    file = host.directory(node) / "data/pgdata" / relation[0]
    flip(file, 3 * 8192 + 4000)
    try:
        _, found = verified(host, node)
    finally:
        flip(file, 3 * 8192 + 4000)
    assert len(found.problems) == 1 and relation[0] in found.problems[0] and "block 3" in found.problems[0]
    assert found.broken == []


def test_damage_in_the_repository(host: RunningHost, node: NodeSpec) -> None:
    """Rows B2 and D6: what is missing or damaged is named, with the times that it breaks."""
    backups = host.link.statuses[node.node_id].repository.backups  # type: ignore[union-attr]
    between = [one for one in segments(host, node) if backups[0].wal_stop < one[0] < backups[1].wal_start]
    repository = files(host, node)
    missing, name = between[1]
    content = repository.read(name)
    repository.remove(name)
    last = segments(host, node)[-1]
    repository.flip(last[1], 600)
    node, found = verified(host, node)
    assert found.problems[:2] == [f"WAL segment {missing} is missing.", f"WAL segment {last[0]} is damaged."]
    assert "Recovery ends" in found.problems[2] or "does not recover" in found.problems[2]
    assert len(found.broken) == 2 and found.broken[0].end == backups[1].ended_at <= found.broken[1].start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "kept_free", lambda cluster, percent: 1 << 60)
        node, partly = verified(host, node)
    assert partly.problems == found.problems[:2] and partly.broken[0] == found.broken[0], "what is found first stays"
    assert len(partly.broken) == 2
    assert partly.impossible.startswith("Not enough disk to restore")
    repository.flip(last[1], 600)
    repository.write(name, content)

    bundle = max(repository.names(f"backup/main/{backups[1].name}/bundle/"))
    repository.flip(bundle)
    node, found = verified(host, node)
    assert any(backups[1].name in text and "is damaged" in text for text in found.problems)
    assert any(backups[1].name in text and "cannot be restored" in text for text in found.problems)
    assert found.broken == [], "the older backup leads to every moment"
