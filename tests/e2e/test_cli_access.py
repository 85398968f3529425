"""`pgherd user`, `database`, `pool` and `events` against a whole instance."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.plugins.instance import Instance


def cli(instance: Instance, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return instance.run(*argv, check=False, **({"stdin": subprocess.DEVNULL} | options))


def out(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(out(done))


def test_a_user_a_database_and_a_pool(instance: Instance) -> None:
    name = instance.create()
    assert "alice" in out(cli(instance, "user", "create", name, "alice"))
    out(cli(instance, "database", "create", name, "shop"))
    made = answer(cli(instance, "pool", "create", name, "web", "--database", "shop", "--size", "4", "-o", "json"))
    assert (made["mode"], made["size"], made["username"]) == ("transaction", 4, "")
    assert "alice" in out(cli(instance, "user", "list", name)) and "shop" in out(
        cli(instance, "database", "list", name)
    )
    assert "web" in out(cli(instance, "database", "show", name, "shop"))

    query = ("--", "-qAtc", "select current_user, current_database()")
    assert out(cli(instance, "service", "psql", name, "--pool", "web", "--user", "alice", *query)) == "alice|shop\n"
    assert out(cli(instance, "service", "psql", name, "--pool", "web", *query)) == "avnadmin|shop\n"
    out(cli(instance, "pool", "update", name, "web", "--user", "alice", "--mode", "session"))
    assert out(cli(instance, "service", "psql", name, "--pool", "web", *query)) == "alice|shop\n"
    assert cli(instance, "service", "psql", name, "--pool", "none", *query).returncode == 3

    old = out(cli(instance, "user", "reveal", name, "alice")).strip()
    assert old not in out(cli(instance, "user", "show", name, "alice"))
    out(cli(instance, "user", "reset-password", name, "alice", "--password", "-", stdin=None, input="my-own-words\n"))
    assert out(cli(instance, "user", "reveal", name, "alice")) == "my-own-words\n"
    assert cli(instance, "user", "reset-password", name, "alice", "--password", "plain-text").returncode == 2
    assert "yes" in out(cli(instance, "user", "allow-replication", name, "alice"))

    refused = cli(instance, "user", "delete", name, "alice", "--yes")
    assert (refused.returncode, "web" in refused.stderr) == (4, True)
    assert cli(instance, "pool", "delete", name, "web").returncode == 2
    for kind, thing in (("pool", "web"), ("database", "shop"), ("user", "alice")):
        out(cli(instance, kind, "delete", name, thing, "--yes"))
        assert cli(instance, kind, "show", name, thing).returncode == 3

    events = answer(cli(instance, "events", "--limit", "40", "-o", "json"))
    about = [one for one in events if one["subject"] == f"{name}/alice"]
    assert {"reveal-dbaas-postgres-user-password", "delete-dbaas-postgres-user"} <= {one["command"] for one in about}
    assert old not in json.dumps(events) and "my-own-words" not in json.dumps(events)
    settings = (
        "--pgbouncer-setting",
        "ignore_startup_parameters=search_path",
        "--pgbouncer-setting",
        "min_pool_size=2",
    )
    assert "min_pool_size = 2" in out(cli(instance, "service", "update", name, *settings))
    out(cli(instance, "secrets", "rotate"))
    assert cli(instance, "user", "reveal", name, "avnadmin").returncode == 0
    instance.delete(name)
