"""Nodes whose data comes from another node's files: what the copy has, and what it does not take along."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd import failpoints
from pgherd.agent import disk, held
from pgherd.agent.origins import Maker
from pgherd.agent.records import note, read_record
from pgherd.drivers import live_copy
from pgherd.drivers.recovery import Recovered
from pgherd.errors import HostFault
from pgherd.spec import Job, NodeSpec, Origin
from pgherd.unprivileged import Account, Answer
from tests.plugins.host import RunningHost, until
from tests.plugins.objects import Bucket
from tests.real.test_agent_backups import repository, stored

pytestmark = pytest.mark.repository


@pytest.fixture(scope="module")
def source(host: RunningHost) -> NodeSpec:
    """A node with something in it, a slot and a subscription."""
    spec = host.running()
    with host.connect(spec) as connection:
        connection.execute("create table kept (i int)")
        connection.execute("insert into kept select generate_series(1, 1000)")
        connection.execute("create role reader login password 'reads-a-lot'")
    host.sql(spec, "select pg_create_logical_replication_slot('sources', 'pgoutput');")
    host.sql(
        spec,
        "create subscription sources connection 'host=192.0.2.1 dbname=x' publication p"
        " with (connect = false, slot_name = 'theirs', enabled = false); alter subscription sources enable;",
    )
    return spec


def fork(host: RunningHost, source: NodeSpec, **changes: object) -> NodeSpec:
    spec = host.spec(origin=Origin(secrets.token_hex(8), source=source.node_id), **changes)
    host.link.wish(spec)
    host.until_in_force(spec, 60)
    return spec


def test_a_copy_has_the_data_and_users_but_no_slot_and_no_subscription(host: RunningHost, source: NodeSpec) -> None:
    before = host.postmaster(source)
    copy = fork(host, source)
    with host.connect(copy, user="reader", password="reads-a-lot") as connection:
        assert connection.execute("select current_user").fetchone() == ("reader",)
    with host.connect(copy) as connection, host.connect(source) as other:
        assert connection.execute("select count(*) from kept").fetchone() == (1000,)
        connection.execute("insert into kept values (1001)")
        assert other.execute("select count(*) from kept").fetchone() == (1000,)
    assert host.sql(copy, "select count(*) from pg_replication_slots;").strip() == "0"
    assert host.sql(copy, "select subenabled, subslotname is null from pg_subscription;").strip() == "f|t"
    assert host.sql(copy, "select count(*) from pg_stat_subscription where pid is not null;").strip() == "0"
    assert host.sql(source, "select subenabled, subslotname from pg_subscription;").strip() == "t|theirs"
    assert host.sql(source, "select slot_name from pg_replication_slots;").strip() == "sources"
    assert host.postmaster(source) == before
    status = host.link.statuses[copy.node_id]
    assert status.origin is not None and status.origin.aside == 0
    host.change(copy, desired="absent")
    host.until(copy, lambda s: s.state == "absent")


def test_lost_data_without_a_backup_is_named_and_never_replaced(host: RunningHost) -> None:
    spec = host.running()
    shutil.rmtree(host.directory(spec) / "data" / "pgdata")
    status = host.until(spec, lambda s: s.state == "failed", 60)
    assert "data is gone" in status.reason and "no backup" in status.reason
    assert not (host.directory(spec) / "data" / "pgdata").exists()
    user = host.account(spec)
    shutil.rmtree(host.directory(spec))
    host.change(spec, cpus=1)
    host.until(spec, lambda s: s.state == "failed" and s.refused == spec.generation + 1, 60)
    with pytest.raises(psycopg.OperationalError):
        host.connect(spec)
    host.change(host.link.wished[spec.node_id], desired="absent")
    host.until(spec, lambda s: s.state == "absent")
    # Whose the directory was, only the record in it said.
    if user is not None:
        host.agent.host.slots._users.delete(user.name)


# --- from a repository ---------------------------------------------------------------------------------------------


class History:
    """A node with a repository, and what it held when: `moments` are times with the rows committed by then."""

    def __init__(self, host: RunningHost, bucket: Bucket | None = None, keep: int = 2) -> None:
        kept = repository(host, bucket, keep=keep)
        self.host, self.files = host, stored(host, kept, bucket)
        self.node = host.running(repository=kept, service_id=kept.service_id)
        self.moments: list[tuple[str, list[int]]] = []
        self._rows: list[int] = []
        with host.connect(self.node) as connection:
            connection.execute("create table history (i int)")

    def write(self, rows: int) -> None:
        """Commit one row after the other, and remember each time between two of them."""
        with self.host.connect(self.node) as connection:
            for _ in range(rows):
                row = len(self._rows) + 1
                connection.execute("insert into history values (%s)", [row])
                self._rows.append(row)
                now = connection.execute("select now() + interval '1 microsecond'").fetchone()[0]
                self.moments.append((now.astimezone(UTC).isoformat().replace("+00:00", "Z"), list(self._rows)))

    def back_up(self, *beside: Job) -> None:
        """A full backup, and the second in which it ended is over."""
        job = Job(secrets.token_hex(8), "backup", full=True)
        self.node = self.host.change(self.node, jobs=[job, *beside])
        status = self.host.until(
            self.node, lambda s: any(j.id == job.id and j.state in ("done", "failed") for j in s.jobs), 90
        )
        assert status.jobs[0].state == "done", status.jobs
        self.node = self.host.change(self.node, jobs=list(beside))
        self.host.until_in_force(self.node)
        until(lambda: datetime.now(UTC).timestamp() > datetime.fromisoformat(status.jobs[0].ended_at).timestamp() + 1)

    def backups(self) -> list[str]:
        """The names of its full backups."""
        return sorted({name.split("/")[2] for name in self.files.names("backup/main/2") if re.search("F/", name)})

    def rows(self, node: NodeSpec | None = None) -> list[int]:
        """What a node holds now."""
        with self.host.connect(node or self.node) as connection:
            return [row[0] for row in connection.execute("select i from history order by i")]

    def fork(self, target: str = "", **origin: object) -> NodeSpec:
        """A node whose data is the history's at that time."""
        given = Origin(secrets.token_hex(8), repository=self.node.repository, target=target, **origin)
        spec = self.host.spec(origin=given)
        self.host.link.wish(spec)
        return spec

    def switch(self) -> str:
        """Let the segment be archived that was written to last; its file's name in the repository."""
        segment = self.host.sql(self.node, "select pg_walfile_name(pg_switch_wal());").strip()

        def arrived() -> list[str]:
            names = self.files.names("archive/main/")
            return [name for name in names if f"/{segment}-" in name and name.endswith(".zst")]

        return str(until(arrived)[0])

    def restore(self, **origin: object) -> Origin:
        """Put the node's own data back."""
        given = Origin(secrets.token_hex(8), source=self.node.node_id, own=True, **origin)
        self.node = self.host.change(self.node, origin=given)
        self.host.until_in_force(self.node, 90)
        self.node = self.host.change(self.node, origin=None)
        self.host.until_in_force(self.node)
        return given


def begun(host: RunningHost) -> History:
    made = History(host)
    host.until(made.node, lambda s: s.repository is not None and s.repository.ready)
    made.write(2)
    made.back_up()
    made.write(4)
    return made


@pytest.fixture(scope="module")
def history(host: RunningHost) -> History:
    return begun(host)


@pytest.fixture
def young(host: RunningHost) -> Iterator[History]:
    """For who leaves histories behind that others would have to go along."""
    made = begun(host)
    yield made
    host.change(made.node, desired="absent")
    host.until(made.node, lambda s: s.state == "absent", 60)


def test_a_fork_has_exactly_what_was_committed_by_then(host: RunningHost, history: History) -> None:
    chosen = [history.moments[2], history.moments[4]]
    with host.connect(history.node) as connection:
        connection.execute("drop table history; create table history (i int)")
        connection.execute("insert into history select generate_series(1, 6)")
    forks = [history.fork(moment, source=history.node.node_id) for moment, _ in chosen]
    for spec, (_, rows) in zip(forks, chosen, strict=True):
        host.until_in_force(spec, 90)
        assert history.rows(spec) == rows
        host.change(spec, desired="absent")


def test_a_restore_that_the_disk_has_no_room_for_is_not_begun(
    host: RunningHost, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = history.rows()
    monkeypatch.setattr(disk, "kept_free", lambda cluster, percent: 1 << 60)
    given = Origin(secrets.token_hex(8), source=history.node.node_id, own=True, target=history.moments[-1][0])
    spec = host.change(history.node, origin=given)
    status = host.until(spec, lambda s: s.refused == spec.generation, 60)
    assert status.reason.startswith("Not enough disk: ") and status.state == "running", status
    assert history.rows() == rows
    assert not (host.directory(spec) / "data" / "making").exists()
    history.node = host.change(spec, origin=None)
    host.until_in_force(history.node)


def test_a_corrupt_newest_backup_is_passed_over(host: RunningHost, history: History) -> None:
    history.back_up()
    rows = history.rows()
    newest = host.link.statuses[history.node.node_id].repository.backups[-1].name  # type: ignore[union-attr]
    for name in history.files.names(f"backup/main/{newest}/"):
        if "manifest" not in name:
            history.files.flip(name)
    spec = history.fork()
    host.until_in_force(spec, 120)
    assert history.rows(spec) == rows
    host.change(spec, desired="absent")


def test_a_segment_that_cannot_be_read_is_not_the_end_of_the_archive(host: RunningHost, history: History) -> None:
    """PostgreSQL would take it for that, and come up without what follows."""
    history.write(1)
    found = history.switch()
    rows, size = history.rows(), len(history.files.read(found))
    history.files.flip(found, size - 1)
    spec = history.fork()
    status = host.until(spec, lambda s: s.state == "failed", 120)
    assert "No backup can be restored: The archive cannot be read." in status.reason
    history.files.flip(found, size - 1)
    spec = host.change(spec, cpus=1)  # else it is tried again after half a minute
    host.until_in_force(spec, 120)
    assert history.rows(spec) == rows
    host.change(spec, desired="absent")


@pytest.fixture
def hole(history: History) -> Iterator[tuple[str, str]]:
    """The archive lacks a segment for the time of the test: its name, and the last time before what it held."""
    history.switch()
    history.write(1)
    history.switch()
    before = history.moments[-2][0]
    history.write(1)
    lacked = history.switch()
    history.write(2)
    history.switch()
    content = history.files.read(lacked)
    history.files.remove(lacked)
    yield Path(lacked).name[:24], before
    history.files.write(lacked, content)


def refused(host: RunningHost, spec: NodeSpec) -> str:
    """Why a node's data cannot be had; the node is deleted then."""
    reason = host.until(spec, lambda s: s.refused == spec.generation, 120).reason
    host.change(spec, desired="absent")
    host.until(spec, lambda s: s.state == "absent")
    return reason


def test_a_missing_segment_is_not_the_end_of_the_archive(
    host: RunningHost, history: History, hole: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a time behind it or with none, and whether the source runs or not: a refusal, and what is possible."""
    segment, before = hole
    until_then = dict(history.moments)[before]
    behind, source = history.moments[-2][0], history.node.node_id
    for target, origin in ((behind, {"source": source}), (behind, {}), ("", {}), ("", {"own": True})):
        reason = refused(host, history.fork(target, **origin))
        assert f"the archive lacks WAL segment {segment}" in reason and target in reason, reason
        last = reason.rpartition(" to ")[2].rstrip(".")
        assert "possible is 20" in reason and before < last < behind, reason
    spec = history.fork(before, source=source)
    also = history.fork(last)  # what a refusal names can be had: no transaction shows that it was the last one
    for one, rows in ((spec, until_then), (also, [*until_then, len(until_then) + 1])):
        host.until_in_force(one, 90)
        assert history.rows(one) == rows
        host.change(one, desired="absent")

    def fail(*_: object, **__: object) -> None:
        raise HostFault("not now")

    monkeypatch.setattr(live_copy, "copy", fail)
    assert f"lacks WAL segment {segment}" in refused(host, history.fork(source=source))
    monkeypatch.undo()
    history.back_up()
    shown = refused(host, history.fork(behind, source=source))
    assert shown.count("possible is") == 1 and re.search(r", and 20\S+Z and later\.$", shown), shown


def test_without_a_hole_a_failed_copy_has_all_from_the_archive(
    host: RunningHost, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise HostFault("not now")

    monkeypatch.setattr(live_copy, "copy", fail)
    history.write(1)
    spec, soon = history.fork(source=history.node.node_id), datetime.now(UTC) + timedelta(seconds=3)
    ahead = history.fork(soon.isoformat(), source=history.node.node_id)
    for one in (spec, ahead):
        host.until_in_force(one, 90)
        assert history.rows(one) == history.rows()
        host.change(one, desired="absent")


@pytest.mark.parametrize("killed", [False, True])
def test_a_fork_of_a_stopped_source_has_what_was_written_last(
    host: RunningHost, history: History, killed: bool
) -> None:
    """Though the repository took nothing when it was stopped."""
    if history.files.bucket is not None:
        pytest.skip("a directory can be closed for a while")
    archive = history.files.directory / "archive"
    archive.chmod(0)
    row = 500 + killed
    with host.connect(history.node) as connection:
        connection.execute("insert into history values (%s)", [row])
    rows, moment = history.rows(), datetime.now(UTC).isoformat()
    if killed:
        host.agent.supervisor.remove(f"node-{history.node.node_id}", gently=False)
    history.node = host.change(history.node, desired="stopped")
    host.until_in_force(history.node, 90)
    reason = refused(host, history.fork(source=history.node.node_id))
    assert "does not go into the archive" in reason, reason
    archive.chmod(0o750)
    forks = [history.fork(source=history.node.node_id), history.fork(moment, source=history.node.node_id)]
    host.until_in_force(forks[0], 90)
    assert row in rows and history.rows(forks[0]) == rows
    assert "after the last transaction" in refused(host, forks[1])
    host.change(forks[0], desired="absent")
    history.node = host.change(history.node, desired="running")
    host.until_in_force(history.node, 60)
    assert history.rows() == rows
    with host.connect(history.node) as connection:
        connection.execute("delete from history where i = %s", [row])  # no moment knows it


def test_data_that_cannot_be_looked_at_is_not_gone(
    host: RunningHost, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with errors, or a host without memory for one more process: the server runs on."""
    postmaster, run = host.postmaster(history.node), held.run

    def failing(account: Account | None, argv: Sequence[str], **more: object) -> Answer:
        if "global/pg_control" in " ".join(argv):
            return Answer(1, b"", "stat: cannot statx '/x/PG_VERSION': Input/output error\n")
        return run(account, argv, **more)

    monkeypatch.setattr(held, "run", failing)
    history.node = host.change(history.node, cpus=1)
    reason = host.until(history.node, lambda s: "cannot be told" in s.reason).reason
    assert reason and host.postmaster(history.node) == postmaster
    monkeypatch.undo()
    history.node = host.change(history.node, cpus=0)
    host.until_in_force(history.node)
    assert host.postmaster(history.node) == postmaster
    status = host.link.statuses[history.node.node_id]
    assert status.origin is None or not status.origin.lost


def test_a_time_that_cannot_be_had_is_refused_with_the_window(host: RunningHost, history: History) -> None:
    early, late = history.moments[0][0], "2100-01-01T00:00:00Z"
    for moment, words in ((early, "no backup"), (late, "after the last transaction")):
        spec = history.fork(moment)
        status = host.until(spec, lambda s: s.refused == 1, 90)
        assert words in status.reason and moment in status.reason and "possible is 20" in status.reason
        host.change(spec, desired="absent")
        host.until(spec, lambda s: s.state == "absent")


def test_in_place_and_back_and_to_a_time_of_a_history_that_was_left(host: RunningHost, history: History) -> None:
    history.write(2)
    moment, rows = history.moments[-2]
    now = history.rows()
    history.restore(target=moment)
    status = host.link.statuses[history.node.node_id]
    assert history.rows() == rows and status.origin is not None and status.origin.aside > 0
    assert (status.origin.left, status.origin.timeline) == (1, 2)
    with host.connect(history.node) as connection:
        connection.execute("insert into history values (1000)")
    history.restore(undo=True)
    status = host.link.statuses[history.node.node_id]
    assert history.rows() == now and status.origin is not None and status.origin.aside == 0
    assert status.origin.timeline == 3
    # The archive now holds two histories of the same time: the fork gets the one that is asked for.
    other = history.fork(timeline=2, source=history.node.node_id, target=datetime.now(UTC).isoformat())
    host.until_in_force(other, 90)
    assert history.rows(other) == [*rows, 1000]
    host.change(other, desired="absent")


def test_the_living_server_archives_on_while_data_is_made_beside_it(
    host: RunningHost, young: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pgBackRest's restore empties its spool, where an archiver may wait for an answer, and who fetches locks out who
    pushes."""
    node = host.directory(young.node)
    acknowledged, seen = node / "data/spool/archive/main/acknowledged", []
    acknowledged.mkdir()

    def passing(place: str) -> None:
        if place in ("origin restored", "origin recovered"):
            seen.append((place, acknowledged.exists()))
            live, beside = (
                dict(
                    line.split("=", 1)
                    for line in (node / one / "pgbackrest.conf").read_text().splitlines()
                    if "=" in line
                )
                for one in ("config", "origin")
            )
            assert live["spool-path"] != beside["spool-path"] and live["lock-path"] != beside["lock-path"]
            young.switch()

    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "passing", passing)
        moment, rows = young.moments[-2]
        young.restore(target=moment)
    assert young.rows() == rows and seen == [("origin restored", True), ("origin recovered", True)]
    assert not acknowledged.exists(), "what another history's segments were answered holds for none of this one's"


def beside(host: RunningHost, spec: NodeSpec) -> list[str]:
    """What lies beside the data that is in force, but for what pgBackRest has there."""
    names = {path.name for path in (host.directory(spec) / "data").iterdir()}
    return sorted(names - {"pgdata", "spool", "lock"})


def lose(host: RunningHost, history: History) -> None:
    """The data is gone, after all of it went to the archive; it is there again when this is over."""
    status = host.link.statuses[history.node.node_id]
    before = status.origin.at if status.origin else ""
    segment = host.sql(history.node, "select pg_walfile_name(pg_switch_wal());").strip()
    archived = f"select coalesce(left(last_archived_wal, 24) >= '{segment}', false) from pg_stat_archiver;"
    until(lambda: host.sql(history.node, archived).strip() == "t", 30)
    shutil.rmtree(host.directory(history.node) / "data" / "pgdata")
    host.until(history.node, lambda s: s.origin is not None and s.origin.lost != "" and s.origin.at > before, 90)
    host.until(history.node, lambda s: s.state == "running")


def test_only_a_confirmation_of_the_restore_deletes_what_was_before_it(host: RunningHost, young: History) -> None:
    """Not a spec that says nothing of it, as after an adoption; not another restore; not data that is made anew."""
    young.write(1)
    now, (moment, rows) = young.rows(), young.moments[-2]
    first = young.restore(target=moment)
    with host.connect(young.node) as connection:
        connection.execute("insert into history values (1001)")
    second = young.restore(target=moment)
    assert young.rows() == rows and beside(host, young.node) == [f"before-{first.id}"]
    lose(host, young)
    for confirmed in ("", second.id, "lost"):
        young.node = host.change(young.node, confirmed=confirmed)
        status = host.until_in_force(young.node)
        assert status.origin is not None and status.origin.kept == first.id and status.origin.aside > 0
    assert young.rows() == rows and beside(host, young.node) == [f"before-{first.id}"]
    young.restore(undo=True)
    assert young.rows() == now and beside(host, young.node) == []

    third = young.restore(target=moment)
    young.node = host.change(young.node, confirmed=third.id)
    status = host.until_in_force(young.node)
    assert status.origin is not None and (status.origin.kept, status.origin.aside) == ("", 0)
    until(lambda: beside(host, young.node) == [])
    young.node = host.change(young.node, origin=Origin("brings-nothing", own=True, undo=True))
    status = host.until(young.node, lambda s: s.refused == young.node.generation)
    assert "no earlier data" in status.reason
    young.node = host.change(young.node, origin=None)
    host.until_in_force(young.node)


def test_an_undo_that_ended_too_early_can_be_repeated_after_another_restore(
    host: RunningHost, young: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have taken the same next timeline; the archive has the restore's."""
    young.write(1)
    now, (moment, rows) = young.rows(), young.moments[-2]
    kept = young.restore(target=moment)

    def end(place: str) -> None:
        if place == "origin recovered":
            raise HostFault("It ends here.")

    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "passing", end)
        undo = Origin(secrets.token_hex(8), source=young.node.node_id, own=True, undo=True)
        young.node = host.change(young.node, origin=undo)
        host.until(young.node, lambda s: "It ends here" in s.reason, 60)
        young.node = host.change(young.node, origin=None)
        host.until_in_force(young.node)
    assert young.rows() == rows and beside(host, young.node) == [f"before-{kept.id}"]
    young.restore(target=moment)
    for i in range(6):  # the archive has the same segments as the data that is kept, with other content
        host.sql(young.node, f"create table public.written_{i} (i int);")
        young.switch()
    young.restore(undo=True)
    assert young.rows() == now and beside(host, young.node) == []


def test_what_was_made_in_vain_is_cleared_and_never_comes_back(host: RunningHost, young: History) -> None:
    """A restore that cannot end, an exchange that never began, and what an agent left that died after an undo."""
    young.write(1)
    now, (moment, _) = young.rows(), young.moments[-2]
    found = young.switch()
    end = len(young.files.read(found)) - 1
    young.files.flip(found, end)
    target = young.moments[-1][0]
    origin = Origin(secrets.token_hex(8), source=young.node.node_id, own=True, target=target)
    young.node = host.change(young.node, origin=origin)
    host.until(young.node, lambda s: "cannot be read" in s.reason, 60)
    assert beside(host, young.node) == ["making"]
    young.files.flip(found, end)
    young.node = host.change(young.node, origin=None)
    host.until_in_force(young.node)
    until(lambda: beside(host, young.node) == [])

    kept = young.restore(target=moment)
    host.stop()
    directory, user = host.directory(young.node), host.account(young.node)
    for name in ("making", "made-other", "before-other"):
        shutil.copytree(directory / "data" / "pgdata" / "global", directory / "data" / name / "global")
        if user is not None:
            subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(directory / "data" / name)], check=True)
    record = read_record(directory)
    record.unclean = record.exchanging = "other"
    record.taken, record.coming = "made-other", record.origin
    note(directory, record)
    host.start()
    until(lambda: beside(host, young.node) == [f"before-{kept.id}"])
    young.restore(undo=True)
    assert young.rows() == now and beside(host, young.node) == []


def test_lost_data_comes_back_from_the_repository(host: RunningHost, history: History) -> None:
    rows = history.rows()
    host.sql(history.node, "select pg_switch_wal();")
    postmaster = host.postmaster(history.node)
    segment = host.sql(history.node, "select pg_walfile_name(pg_current_wal_lsn());").strip()
    host.sql(history.node, "create table public.last (i int);")
    host.sql(history.node, "select pg_switch_wal();")
    archived = f"select coalesce(last_archived_wal >= '{segment}', false) from pg_stat_archiver;"
    until(lambda: host.sql(history.node, archived).strip() == "t", 30)
    shutil.rmtree(host.directory(history.node) / "data" / "pgdata")
    status = host.until(history.node, lambda s: s.origin is not None and s.origin.lost != "", 90)
    host.until(history.node, lambda s: s.state == "running")
    assert "data was gone" in status.origin.lost and history.rows() == rows
    assert host.postmaster(history.node) != postmaster
    user = host.account(history.node)
    host.directory(history.node).rename(host.home / "nodes" / ".gone")
    history.node = host.change(history.node, cpus=1)
    # What was seen just before the directory went away may say nothing of its origin.
    host.until(history.node, lambda s: s.origin is not None and s.origin.at > status.origin.at, 90)
    host.until_in_force(history.node, 90)
    assert history.rows() == rows and host.account(history.node) == user
    shutil.rmtree(host.home / "nodes" / ".gone")


@pytest.mark.parametrize("crashed", [False, True])
def test_a_kept_node_has_only_its_repository_and_comes_back(host: RunningHost, history: History, crashed: bool) -> None:
    """With all that was acknowledged, also when the server does not live any more, or was made anew just before."""
    row, user = 2000 + crashed, host.account(history.node)
    with host.connect(history.node) as connection:
        connection.execute("insert into history values (%s)", [row])
    rows = history.rows()
    if crashed:
        host.stop()
        host.agent.supervisor.remove(f"node-{history.node.node_id}", gently=False)
    history.node = host.change(history.node, desired="kept", origin=None)
    if crashed:
        host.start()
    host.until(history.node, lambda s: s.state == "kept", 60)
    assert [path.name for path in host.directory(history.node).iterdir()] == ["slot.json"]
    origin = Origin(secrets.token_hex(8), own=True)
    history.node = host.change(history.node, desired="running", origin=origin, established=True)
    host.until_in_force(history.node, 90)
    assert row in rows and history.rows() == rows and host.account(history.node) == user


@pytest.fixture
def short(host: RunningHost) -> Iterator[History]:
    """Of a plan that keeps one backup: each ends the one before."""
    made = History(host, keep=1)
    host.until(made.node, lambda s: s.repository is not None and s.repository.ready)
    made.write(1)
    made.back_up()
    made.write(2)
    yield made
    host.change(made.node, desired="absent")
    host.until(made.node, lambda s: s.state == "absent", 60)


def test_a_backup_that_a_fork_reads_is_not_expired(
    host: RunningHost, short: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, begun, go_on = Maker._attempt, threading.Event(), threading.Event()

    def waits(*how: Any) -> Recovered:
        begun.set()
        assert go_on.wait(90)
        return attempt(*how)

    monkeypatch.setattr(Maker, "_attempt", waits)
    moment, rows = short.moments[1]
    spec = short.fork(moment, source=short.node.node_id)
    assert begun.wait(60)
    before = short.backups()
    short.back_up()
    assert before[0] in short.backups() and len(short.backups()) == 2
    go_on.set()
    host.until_in_force(spec, 90)
    assert short.rows(spec) == rows
    host.change(spec, desired="absent")
    short.back_up()
    assert len(short.backups()) == 1
    late = refused(host, short.fork(moment))
    assert "no backup" in late, late
    failing = short.fork(moment)  # what can never come true holds nothing
    host.until(failing, lambda s: s.refused == 1, 60)
    short.back_up()
    assert len(short.backups()) == 1
    host.change(failing, desired="absent")


def test_a_backup_that_is_being_proven_is_not_expired(host: RunningHost, short: History) -> None:
    before, proof = short.backups(), Job(secrets.token_hex(8), "verify")
    short.node = host.change(short.node, jobs=[proof])
    until((host.directory(short.node) / "data/proof/pgdata").exists, 60)
    holder = int((host.home / "s6" / f"job-{short.node.node_id}-verify" / "holder").read_text())
    os.kill(holder, signal.SIGSTOP)
    short.back_up(proof)
    assert before[0] in short.backups() and len(short.backups()) == 2
    os.kill(holder, signal.SIGCONT)
    status = host.until(short.node, lambda s: any(j.id == proof.id and j.state == "done" for j in s.jobs), 90)
    found = next(job.verification for job in status.jobs if job.id == proof.id)
    assert found is not None and found.problems == [] and found.backup == before[0]


def test_a_node_that_comes_back_while_its_delete_waits_lost_nothing(host: RunningHost, history: History) -> None:
    """The repository cannot be written, so the data cannot go; what it holds is nowhere else."""
    if history.files.bucket is not None:
        pytest.skip("a directory can be hidden for a while")
    archive = history.files.directory / "archive"
    archive.rename(archive.with_name("hidden"))
    archive.write_text("no directory")
    with host.connect(history.node) as connection:
        connection.execute("insert into history values (3000)")
    rows = history.rows()
    history.node = host.change(history.node, desired="kept", origin=None)
    host.until(history.node, lambda s: s.step == "archive" and s.reason != "", 60)
    archive.unlink()
    archive.with_name("hidden").rename(archive)
    origin = Origin(secrets.token_hex(8), own=True, back=True)
    history.node = host.change(history.node, desired="running", origin=origin, established=True)
    host.until_in_force(history.node, 90)
    assert 3000 in rows and history.rows() == rows


def test_data_that_does_not_recover_is_not_deleted_while_the_service_is_kept(
    host: RunningHost, history: History
) -> None:
    with host.connect(history.node) as connection:
        connection.execute("insert into history values (4000)")
    rows, control = history.rows(), host.directory(history.node) / "data" / "pgdata" / "global" / "pg_control"
    host.stop()
    host.agent.supervisor.remove(f"node-{history.node.node_id}", gently=False)
    control.rename(control.with_name("hidden"))
    history.node = host.change(history.node, desired="kept", origin=None)
    host.start()
    host.until(history.node, lambda s: s.step == "archive" and "does not recover" in s.reason, 60)
    control.with_name("hidden").rename(control)
    host.until(history.node, lambda s: s.state == "kept", 60)
    origin = Origin(secrets.token_hex(8), own=True, back=True)
    history.node = host.change(history.node, desired="running", origin=origin, established=True)
    host.until_in_force(history.node, 90)
    assert 4000 in rows and history.rows() == rows


def test_a_deleted_node_leaves_no_repository(host: RunningHost, history: History) -> None:
    host.change(history.node, desired="absent")
    host.until(history.node, lambda s: s.state == "absent", 60)
    assert not (host.home / "backups" / history.node.service_id).exists() and not history.files.names()
