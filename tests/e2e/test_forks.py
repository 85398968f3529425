"""Forks, restores in place and services that come back, as users make them: by the SDK, our endpoints, the CLI."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from exoscale.api.exceptions import ExoscaleAPIClientException

from tests.contract.processes import metadata, stopped
from tests.plugins.instance import Instance, running_instance, until

pytestmark = pytest.mark.repository


@pytest.fixture(scope="module")
def mine() -> Iterator[Instance]:
    """An instance that keeps what was deleted."""
    with running_instance(keep_deleted_days="7", archive_timeout_seconds="2") as made:
        yield made


def window(instance: Instance, name: str) -> dict[str, Any]:
    return dict(instance.call("GET", f"/pgherd/v1/service/{name}/backup").json())


def back_up(instance: Instance, name: str) -> None:
    operation = instance.call("POST", f"/pgherd/v1/service/{name}/backup", {"full": True}).json()
    assert instance.finished(operation, 120)["state"] == "success"
    ended = datetime.fromisoformat(window(instance, name)["backups"][-1]["time"])
    until(lambda: datetime.now(UTC) > ended + timedelta(seconds=1.1), 10, "the backup's second is over")


def write(instance: Instance, name: str, rows: int) -> list[tuple[datetime, int]]:
    """Commit one row after the other; the times after which each was there."""
    moments = []
    with psycopg.connect(instance.dsn(name), autocommit=True) as connection:
        for _ in range(rows):
            count = connection.execute("insert into ledger default values returning i").fetchone()
            now = connection.execute("select clock_timestamp()").fetchone()
            assert count and now
            moments.append((now[0].astimezone(UTC), count[0]))
    return moments


def rows(instance: Instance, name: str) -> list[int]:
    return [row[0] for row in instance.sql(name, "select i from ledger order by i")]


@pytest.fixture(scope="module")
def source(mine: Instance) -> str:
    """A service with users, a pool, settings, a backup, and a table that was dropped later."""
    name = mine.create(pg_settings={"log_min_duration_statement": 1234}, ip_filter=["203.0.113.0/24"], work_mem=5)
    client = mine.client()
    for operation in (
        client.create_dbaas_postgres_user(service_name=name, username="reader"),
        client.create_dbaas_pg_database(service_name=name, database_name="other"),
        client.create_dbaas_pg_connection_pool(service_name=name, name="pool", database_name="other", size=3),
    ):
        assert mine.finished(operation)["state"] == "success"
    mine.sql(name, "create table ledger (i int generated always as identity)")
    back_up(mine, name)
    return name


@pytest.fixture(scope="module")
def history(mine: Instance, source: str) -> list[tuple[datetime, int]]:
    moments = write(mine, source, 12)
    mine.sql(source, "drop table ledger")
    mine.sql(source, "create table ledger (i int generated always as identity (start 1000))")
    return moments


def fork(instance: Instance, source: str, name: str, **fields: Any) -> dict[str, Any]:
    operation = instance.client().create_dbaas_service_pg(
        name=name, fork_from_service=source, **({"plan": "hobbyist-2"} | fields)
    )
    return instance.finished(operation, 180)


def test_a_fork_takes_what_is_the_sources_but_not_its_identity(mine: Instance, source: str) -> None:
    before = mine.client().get_dbaas_service_pg(name=source)
    assert fork(mine, source, "as-now", work_mem=6)["state"] == "success"
    client = mine.client()
    made, origin = client.get_dbaas_service_pg(name="as-now"), client.get_dbaas_service_pg(name=source)
    for same in ("databases", "pg-settings", "ip-filter", "users", "version"):
        assert made[same] == origin[same], same
    assert [pool["name"] for pool in made["connection-pools"]] == ["pool"]
    assert (made["work-mem"], made["state"]) == (6, "running")
    assert made["uri-params"]["port"] != origin["uri-params"]["port"]
    for user in ("avnadmin", "reader"):
        asked = {"username": user}
        given = client.reveal_dbaas_postgres_user_password(service_name="as-now", **asked)["password"]
        assert given == client.reveal_dbaas_postgres_user_password(service_name=source, **asked)["password"]
        assert mine.sql("as-now", "select current_user", user=user, password=given) == [(user,)]
    port = str(int(made["uri-params"]["port"]) + 1)
    assert mine.sql("as-now", "select current_database()", port=port, dbname="pool") == [("other",)]
    repository = until(lambda: window(mine, "as-now").get("repository"), 30, "it has a repository of its own")
    assert repository == ("s3" if mine.bucket else "directory") and len(list((mine.home / "backups").glob("*-*"))) == 2
    moves = ("backups", "notifications", "node-states")
    assert {key: origin[key] for key in origin if key not in moves} == {k: before[k] for k in before if k not in moves}
    mine.delete("as-now")


def test_forks_have_exactly_what_was_committed_by_then(
    mine: Instance, source: str, history: list[tuple[datetime, int]]
) -> None:
    draw = random.SystemRandom()
    chosen = [history[-1], *draw.sample(history[:-1], 2)]
    forms = [
        lambda t: t.isoformat(),
        lambda t: t.strftime("%Y-%m-%d %H:%M:%S.%f"),
        lambda t: t.isoformat("T")[:-6] + "Z",
    ]
    operations = [
        mine.client().create_dbaas_service_pg(
            name=f"then-{i}", plan="hobbyist-2", fork_from_service=source, recovery_backup_time=form(moment)
        )
        for i, ((moment, _), form) in enumerate(zip(chosen, forms, strict=True))
    ]
    for operation in operations:
        assert mine.finished(operation, 180)["state"] == "success"
    for i, (_, last) in enumerate(chosen):
        assert rows(mine, f"then-{i}") == list(range(1, last + 1))
        mine.delete(f"then-{i}")
    assert rows(mine, source) == []


def test_what_cannot_be_forked_is_refused_with_the_reason(mine: Instance, source: str) -> None:
    late = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"fork_from_service": "nobodys"}, 404, "Service does not exist"),
        ({"fork_from_service": source, "version": "14"}, 400, "version: a fork keeps"),
        ({"fork_from_service": source, "admin_username": "other"}, 400, "admin-username"),
        ({"fork_from_service": source, "recovery_backup_time": late}, 400, "lies in the future; possible is 20"),
        ({"fork_from_service": source, "recovery_backup_time": "2020-01-01T00:00:00Z"}, 400, "before the first backup"),
        ({"fork_from_service": source, "recovery_backup_time": "yesterday"}, 400, "ISO 8601"),
        ({"recovery_backup_time": "2026-01-31 12:00:00"}, 400, "needs fork-from-service"),
    ]
    for fields, status, words in cases:
        with pytest.raises(ExoscaleAPIClientException) as refused:
            mine.client().create_dbaas_service_pg(name="refused", plan="hobbyist-2", **fields)
        assert str(status) in str(refused.value) and words in str(refused.value), refused.value
    organization = f"o-{source[-6:]}"
    assert mine.call("POST", "/pgherd/v1/organization", {"name": organization}).status_code == 200
    key = mine.call("POST", "/pgherd/v1/api-key", {"name": "k", "organization": organization}).json()
    with pytest.raises(ExoscaleAPIClientException, match="Service does not exist"):
        mine.client((key["key"], key["secret"])).create_dbaas_service_pg(
            name="theirs", plan="hobbyist-2", fork_from_service=source
        )


def test_in_place_and_back_by_the_command_line(
    mine: Instance, source: str, history: list[tuple[datetime, int]]
) -> None:
    moment, last = history[5]
    mine.run("service", "restore", source, "--to", moment.isoformat(), "--yes")
    assert rows(mine, source) == list(range(1, last + 1))
    shown = mine.run("service", "restore", source, "--undo", "--yes")
    assert "running" in shown.stdout and rows(mine, source) == []
    nothing = mine.run("service", "restore", source, "--confirm", "--yes", check=False)
    assert nothing.returncode and "No data of" in nothing.stderr
    made = mine.run("service", "create", "later", "--fork-from", source)
    assert "hobbyist-2" in made.stdout and rows(mine, "later") == []
    mine.delete("later")

    mine.run("service", "restore", source, "--to", moment.isoformat(), "--yes")
    before = list((mine.home / "nodes" / node_of(mine, source) / "data").glob("before-*"))
    mine.run("service", "restore", source, "--confirm", "--yes")
    assert len(before) == 1 and not before[0].exists() and rows(mine, source) == list(range(1, last + 1))
    gone = mine.run("service", "restore", source, "--undo", "--yes", check=False)
    assert gone.returncode and "No data of" in gone.stderr


def test_an_undo_that_waits_behind_other_changes_finds_the_data(
    mine: Instance, source: str, history: list[tuple[datetime, int]]
) -> None:
    moment, last = history[3]
    before = rows(mine, source)
    mine.run("service", "restore", source, "--to", moment.isoformat(), "--yes")
    assert rows(mine, source) == list(range(1, last + 1)) != before
    with stopped(mine, "agent"):
        change = {"pg-settings": {"log_min_duration_statement": 4321}}
        update = mine.call("PUT", f"/v2/dbaas-postgres/{source}", change).json()
        undo = mine.call("POST", f"/pgherd/v1/service/{source}/restore/undo").json()
        assert update["state"] == undo["state"] == "pending", (update, undo)
    assert mine.finished(update, 60)["state"] == mine.finished(undo, 120)["state"] == "success"
    assert rows(mine, source) == before


def node_of(instance: Instance, name: str) -> str:
    mine = f"s.name = '{name}' and s.deleted_at is null"
    return metadata(instance, f"select n.id from node n join service s on s.id = n.service_id where {mine}")


def test_what_the_hosts_last_word_speaks_against_is_refused(mine: Instance, source: str) -> None:
    """While the agent is down: a plan that is too small for the data, and a second restore beside one that waits."""
    node, now = node_of(mine, source), datetime.now(UTC).isoformat()
    mine.sql(source, "insert into ledger default values")
    until(lambda: window(mine, source)["window"]["latest"] > now, 60, "the archive goes on after now")
    with stopped(mine, "agent"):
        used = metadata(mine, f"select status -> 'disk_used' from node where id = '{node}'")
        report = "update node set status = jsonb_set(status, '{{disk_used}}', '{0}') where id = '{1}'"
        metadata(mine, report.format(7 << 30, node))
        with pytest.raises(ExoscaleAPIClientException, match=r"409.*8 GiB of disk.*uses 7.0 GiB.*125 %"):
            mine.client().create_dbaas_service_pg(name="large", plan="hobbyist-2", fork_from_service=source)
        metadata(mine, report.format(used, node))
        restore = f"/pgherd/v1/service/{source}/restore"
        first = mine.call("POST", restore, {"to": now})
        assert first.status_code == 200, first.text
        second = mine.call("POST", restore, {"to": datetime.now(UTC).isoformat()})
        assert second.status_code == 409 and "wait for its end" in second.text
    assert mine.finished(first.json(), 120)["state"] == "success"


def test_a_source_that_is_deleted_while_its_fork_is_made(instance: Instance) -> None:
    """The fork has all of the data or does not come; nothing of either is left in the end."""
    name = instance.create()
    instance.sql(name, "create table ledger (i int generated always as identity, t text)")
    instance.sql(name, "insert into ledger (t) select repeat('x', 1000) from generate_series(1, 100000)")
    node, before = node_of(instance, name), set(instance.node_directories())
    operation = instance.client().create_dbaas_service_pg(name=f"{name}-f", plan="hobbyist-2", fork_from_service=name)
    until(lambda: set(instance.node_directories()) - before, 20, "the fork has begun")
    instance.delete(name)
    done = instance.finished(operation, 120)
    if done["state"] == "success":
        assert instance.sql(f"{name}-f", "select count(*), max(i) from ledger") == [(100_000, 100_000)]
    else:
        assert done["reason"] in ("conflict", "fault") and done["message"], done
    instance.delete(f"{name}-f")
    until(lambda: node not in instance.node_directories(), 30, "nothing of the source is left")


def test_a_deleted_service_comes_back_with_all_that_was_written(mine: Instance) -> None:
    name = mine.create()
    mine.sql(name, "create table ledger (i int generated always as identity)")
    back_up(mine, name)
    last = write(mine, name, 3)[-1][1]
    mine.delete(name)
    listed = json.loads(mine.run("service", "undelete", "--list", "-o", "json").stdout)
    assert name in [one["name"] for one in listed]
    mine.run("service", "undelete", name)
    assert rows(mine, name) == list(range(1, last + 1))
    again = mine.call("POST", f"/pgherd/v1/service/{name}/undelete")
    assert again.status_code in (404, 409)
    mine.delete(name)
    metadata(mine, f"update service set kept_until = now() where name = '{name}'")
    kept = len(list((mine.home / "backups").iterdir()))
    until(lambda: len(list((mine.home / "backups").iterdir())) < kept, 40, "what was kept is removed in the end")


def test_a_service_that_comes_back_before_its_delete_ends_lost_nothing(mine: Instance) -> None:
    """The repository does not take what was written last, so the delete waits, and the data is still there."""
    if mine.bucket:
        pytest.skip("a directory can be hidden for a while")
    name = mine.create()
    mine.sql(name, "create table ledger (i int generated always as identity)")
    back_up(mine, name)
    service = metadata(mine, f"select id from service where name = '{name}' and deleted_at is null")
    archive = mine.home / "backups" / service / "repo" / "archive"
    archive.rename(archive.with_name("hidden"))
    archive.write_text("no directory")
    last = write(mine, name, 3)[-1][1]
    node = node_of(mine, name)
    mine.call("DELETE", f"/v2/dbaas-service/{name}")
    step = f"select status ->> 'step' from node where id = '{node}'"
    until(lambda: metadata(mine, step) == "archive", 60, "the delete waits for the repository")
    archive.unlink()
    archive.with_name("hidden").rename(archive)
    assert mine.finished(mine.call("POST", f"/pgherd/v1/service/{name}/undelete").json(), 120)["state"] == "success"
    assert rows(mine, name) == list(range(1, last + 1))
    mine.delete(name)


def test_lost_data_is_made_anew_and_said_so(mine: Instance) -> None:
    name = mine.create()
    mine.sql(name, "create table ledger (i int generated always as identity)")
    back_up(mine, name)
    last = write(mine, name, 2)[-1][1]
    mine.sql(name, "create table filler as select generate_series(1, 1000)")
    newest = until(lambda: window(mine, name).get("window", {}).get("latest"), 90, "archived")
    until(lambda: window(mine, name)["window"]["latest"] > newest, 90, "the last segment has gone")
    pgdata = mine.home / "nodes" / node_of(mine, name) / "data/pgdata"
    subprocess.run(["sh", "-c", f"until rm -rf {pgdata}; do :; done"], check=True, timeout=30)

    def back() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            return rows(mine, name) == list(range(1, last + 1))
        return False

    def lost() -> str:
        shown = mine.client().get_dbaas_service_pg(name=name)
        return str(shown["node-states"][0].get("reason", ""))

    until(lambda: "made anew" in lost(), 60, "the loss is stated")
    until(back, 60, "the rows are back")

    def told() -> list[str]:
        events = mine.call("GET", "/pgherd/v1/event").json()["events"]
        return [event["subject"] for event in events if event["command"] == "rebuild-node"]

    until(lambda: told() == [name], 30, "an event tells of it")
    mine.delete(name)
