"""Tasks against a cluster as it will be, pools against its connections, passwords against what is in force."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.errors import Conflict, Incorrect, NotFound
from pgherd.model.access import MOST_USERS, Cluster, Password, revealed
from pgherd.model.passwords import verifier
from pgherd.model.pool import check_sum, parameters
from pgherd.spec import NodeStatus, Pool, Role, Task

STATUS = NodeStatus(
    "n", 1, "running", users=[Role("avnadmin", False), Role("alice", True)], databases=["defaultdb", "shop"]
)


def cluster(*waiting: Task, pools: tuple[Pool, ...] = ()) -> Cluster:
    return Cluster(STATUS, waiting, pools, "avnadmin")


def task(kind: Any, name: str) -> Task:
    return Task("id", kind, name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("create-user", "bob"), ("drop-user", "alice"), ("set-password", "avnadmin"), ("set-replication", "alice"),
        ("create-database", "new"), ("drop-database", "shop"), ("create-database", "alice"), ("create-user", "shop"),
    ],
)  # fmt: skip
def test_what_can_be_done(kind: str, name: str) -> None:
    cluster().check(task(kind, name))


@pytest.mark.parametrize(
    ("kind", "name", "error", "text"),
    [
        ("create-user", "alice", Conflict, "User alice already exists"),
        ("create-database", "shop", Conflict, "Database shop already exists"),
        ("drop-user", "bob", NotFound, "User bob does not exist"),
        ("drop-user", "avnadmin", Conflict, "admin and cannot be deleted"),
        ("set-password", "pgherd_pooler", NotFound, "does not exist"),
        ("drop-user", "a\nb", NotFound, r"'a\\nb'"),
        ("drop-database", "defaultdb", Conflict, "default database"),
        ("drop-database", "postgres", NotFound, "does not exist"),
    ],
)
def test_what_cannot(kind: str, name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cluster().check(task(kind, name))


def test_waiting_tasks_count() -> None:
    soon = cluster(task("create-user", "bob"), task("drop-database", "shop"), task("drop-user", "alice"))
    with pytest.raises(Conflict):
        soon.check(task("create-user", "bob"))
    with pytest.raises(NotFound):
        soon.check(task("drop-database", "shop"))
    soon.check(task("create-user", "alice"))
    soon.check_pool(Pool("p", "defaultdb", "session", 1, "bob"))
    with pytest.raises(Incorrect, match="no database shop"):
        soon.check_pool(Pool("p", "shop", "session", 1))
    with pytest.raises(Incorrect, match="no user alice"):
        soon.check_pool(Pool("p", "defaultdb", "session", 1, "alice"))


def test_what_pools_use_stays() -> None:
    pools = (Pool("b", "shop", "session", 1, "alice"), Pool("a", "shop", "session", 1))
    with pytest.raises(Conflict, match=r"Database shop is used by connection pools: a, b\. Delete them first\."):
        cluster(pools=pools).check(task("drop-database", "shop"))
    with pytest.raises(Conflict, match=r"User alice is used by connection pools: b\."):
        cluster(pools=pools).check(task("drop-user", "alice"))
    cluster(pools=pools).check(task("set-password", "alice"))


def test_there_is_a_most() -> None:
    full = Cluster(NodeStatus("n", 1, "running", users=[Role(f"u{i}", False) for i in range(MOST_USERS)]), (), (), "a")
    with pytest.raises(Conflict, match="at most 1000"):
        full.check(task("create-user", "one-more"))


def test_pools_fit_into_the_connections() -> None:
    pools = [Pool("a", "d", "session", 10), Pool("b", "d", "session", 10)]
    check_sum(pools, {}, 25, "size")
    check_sum([], {}, 1, "size")
    with pytest.raises(Conflict, match=r"^plan: the pools would take 20 connections \(a 10, b 10\), but 19 are left"):
        check_sum(pools, {}, 24, "plan")
    with pytest.raises(Conflict, match="autodb_pool_size 1"):
        check_sum(pools, {"autodb_pool_size": 1}, 25, "pgbouncer-settings")


def test_parameters() -> None:
    sent = {"ignore_startup_parameters": ["search_path", "extra_float_digits"], "server_reset_query_always": True}
    assert parameters(sent) == {
        "ignore_startup_parameters": "search_path,extra_float_digits", "server_reset_query_always": True
    }  # fmt: skip


def test_only_the_password_in_force_is_revealed() -> None:
    old, new = (Password(text, verifier(text)) for text in ("old-password", "new-password"))
    assert revealed("u", Role("u", False, new.mark), [old, new]) == "new-password"
    assert revealed("u", Role("u", False, old.mark), [old, new]) == "old-password"
    for mark in ("", "0" * 16):
        with pytest.raises(NotFound, match="Reset it"):
            revealed("u", Role("u", False, mark), [old, new])
    with pytest.raises(NotFound, match="User does not exist"):
        revealed("u", None, [old])
    assert "password" not in repr(new).lower().replace("password(", "")
