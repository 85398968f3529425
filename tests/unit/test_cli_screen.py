"""What is printed: columns, facts, descriptions; and how commands end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgherd.cli import describe, screen
from pgherd.cli.app import main
from pgherd.cli.body import create_body, update_body
from pgherd.cli.client import message_of, path_parameters, plain_cause
from pgherd.cli.credentials import find
from pgherd.cli.outcome import CliError, Exit, code_of, hint_for
from pgherd.cli.psql import environment, passfile
from pgherd.cli.secrets_in import read_secret
from pgherd.cli.waiting import describe_nodes, failed, service_of

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
SERVICE: dict[str, Any] = {
    "name": "demo",
    "type": "pg",
    "plan": "hobbyist-2",
    "state": "rebuilding",
    "node-states": [
        {"name": "demo-1", "state": "setting_up_vm", "step": "start", "reason": "port 21600 is taken", "role": "master"}
    ],
    "node-count": 1,
    "node-cpu-count": 2,
    "node-memory": 2 * 2**30,
    "disk-size": 8 * 2**30,
    "ip-filter": [],
    "databases": ["defaultdb"],
    "users": [{"username": "avnadmin", "type": "primary"}],
    "pg-settings": {"jit": True, "wal": {"max_wal_senders": 30}},
    "maintenance": {"dow": "sunday", "time": "02:00:00", "updates": []},
    "backup-schedule": {"backup-hour": 3, "backup-minute": 5},
    "work-mem": 8,
    "created-at": "2026-05-01T11:57:00Z",
}


@pytest.fixture(autouse=True)
def _no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("EXOSCALE_", "PGHERD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PGHERD_HOME", str(tmp_path / "home"))
    yield
    screen.reset()


def test_columns_are_aligned_without_trailing_blanks() -> None:
    assert screen.render_columns([("NAME", "STATE"), ("a-long-name", "running"), ("b", "")]) == (
        "NAME         STATE\na-long-name  running\nb"
    )


def test_control_characters_of_a_tenant_do_not_reach_the_terminal() -> None:
    assert screen.visible("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\x0ac\\x202e"


def test_facts_leave_out_what_is_empty() -> None:
    assert screen.fact_rows([("A", 1), ("B", None), ("C", ""), ("D", ["x", "y"]), ("E", [])]) == [
        ("A", "1"),
        ("D", "x"),
        ("", "y"),
    ]


def test_a_service_in_words() -> None:
    facts = dict(describe.service_facts(SERVICE, NOW))
    assert facts["Plan"] == "hobbyist-2 (1 node, 2 CPUs, 2 GiB memory, 8 GiB disk)"
    assert facts["Nodes"] == ["demo-1 setting_up_vm (start): port 21600 is taken"]
    assert facts["Settings"] == ["jit = true", "wal.max_wal_senders = 30"]
    assert facts["Maintenance"] == "sunday 02:00:00 UTC"
    assert facts["Backups at"] == "03:05 UTC"
    assert facts["Created"] == "2026-05-01 11:57:00 (3 min ago)"
    assert facts["IP filter"] == "empty: nobody from outside"


def test_the_least_that_the_contract_promises_is_enough() -> None:
    least = {"name": "demo", "type": "pg", "plan": "hobbyist-2"}
    assert dict(describe.service_facts(least, NOW))["Plan"] == "hobbyist-2"
    assert describe.service_rows([least], NOW) == [("demo", "unknown", "pg", "hobbyist-2", "", "no", "")]


def test_services_are_listed_by_name() -> None:
    other = SERVICE | {"name": "a", "termination-protection": True}
    rows = describe.service_rows([SERVICE, other], NOW)
    assert [row[0] for row in rows] == ["a", "demo"]
    assert rows[0][5] == "yes"


@pytest.mark.parametrize(("seconds", "text"), [(0, "now"), (59, "59 s ago"), (3600, "1 h ago"), (86400 * 3, "3 d ago")])
def test_ages(seconds: int, text: str) -> None:
    stamp = datetime.fromtimestamp(NOW.timestamp() - seconds, UTC).isoformat()
    assert describe.age(stamp, NOW).endswith(f"({text})")


def test_a_password_goes_into_the_uri_escaped() -> None:
    uri = "postgres://avnadmin@127.0.0.1:21600/defaultdb?sslmode=require"
    assert describe.with_password(uri, "a/b@c") == (
        "postgres://avnadmin:a%2Fb%40c@127.0.0.1:21600/defaultdb?sslmode=require"
    )


def test_progress_shows_states_and_reasons() -> None:
    assert describe_nodes(SERVICE) == "rebuilding - demo-1 setting_up_vm (start): port 21600 is taken"
    assert describe_nodes({"state": "running"}) == "running"


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, Exit.REFUSED), (403, Exit.REFUSED), (404, Exit.NOT_FOUND), (409, Exit.REFUSED), (500, Exit.UNREACHABLE)],
)
def test_exit_codes_of_answers(status: int, code: Exit) -> None:
    assert code_of(status) is code


def test_hints_say_what_to_do() -> None:
    assert "pgherd env" in hint_for(403, "Invalid request signature")
    assert "make up" in hint_for(403, "Invalid request signature", from_file="/home/credentials.toml")
    assert "key create" in hint_for(403, "Forbidden by role policy for dbaas")
    assert "--no-termination-protection" in hint_for(403, "Service is protected against termination and shutdown.")
    assert "service list" in hint_for(404, "Service does not exist")
    assert hint_for(400, "plan: unknown") == ""


def test_the_message_of_an_error() -> None:
    assert message_of(404, '{"message": "Service does not exist"}') == "Service does not exist"
    for body in ("", "<html>", "[]", '{"message": 1}'):
        assert message_of(502, body) == "The API answered with status 502."


def test_the_innermost_cause_is_told() -> None:
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as inner:
            raise RuntimeError("layers") from inner
    except RuntimeError as error:
        assert plain_cause(error) == "connection refused"


def test_failed_operations() -> None:
    error = failed({"state": "failure", "reason": "conflict", "message": "no"}, "demo")
    assert (error.code, "conflict" in error.message, "demo" in error.hint) == (Exit.FAILED, True, True)
    assert failed({"state": "timeout", "reason": "unavailable"}).code is Exit.TIMED_OUT


def test_the_service_of_an_operation() -> None:
    assert service_of({"reference": {"link": "/v2/dbaas-postgres/demo"}}) == "demo"
    assert service_of({"reference": {"link": "/v2/zone"}}) == service_of({}) == ""


def test_path_parameters_stand_in_the_order_of_the_path() -> None:
    assert path_parameters({"path": "/a/{service-name}/user/{username}/x"}) == ["service-name", "username"]


def test_bodies_hold_what_was_given_and_nothing_else() -> None:
    wish = {"plan": "startup-4", "backup_hour": 0, "ip_filter": [], "termination_protection": False}
    assert create_body(None, wish) == {  # type: ignore[arg-type]
        "plan": "startup-4",
        "backup-schedule": {"backup-hour": 0},
        "termination-protection": False,
    }
    wish = {"maintenance_dow": "Sunday", "maintenance_time": "02:00", "clear_ip_filter": True}
    assert update_body(None, wish) == {  # type: ignore[arg-type]
        "maintenance": {"dow": "sunday", "time": "02:00:00"},
        "ip-filter": [],
    }


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"maintenance_dow": "sunday"},
        {"maintenance_dow": "sunday", "maintenance_time": "2 am"},
        {"ip_filter": ["::/0"], "clear_ip_filter": True},
    ],
)
def test_changes_that_make_no_sense_are_usage_errors(wish: dict[str, Any]) -> None:
    with pytest.raises(CliError) as caught:
        update_body(None, wish)  # type: ignore[arg-type]
    assert caught.value.code is Exit.USAGE


def test_a_password_comes_from_anywhere_but_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from-a-file\n")
    monkeypatch.setenv("SECRET", "from-a-variable")
    monkeypatch.setattr("sys.stdin", io.StringIO("from-input\n"))
    assert read_secret(f"@{tmp_path}/secret", "Password") == "from-a-file"
    assert read_secret("env:SECRET", "Password") == "from-a-variable"
    assert read_secret("-", "Password") == "from-input"
    for source in ("hunter22", "env:ABSENT", f"@{tmp_path}/absent"):
        with pytest.raises(CliError) as caught:
            read_secret(source, "Password")
        assert "hunter22" not in caught.value.message


def test_psql_gets_the_password_for_this_service_alone() -> None:
    params = {"host": "2001:db8::1", "port": "21600", "dbname": "defaultdb"}
    assert passfile(params, "a:b", "p\\:q") == "2001\\:db8\\:\\:1:21600:*:a\\:b:p\\\\\\:q\n"
    caller = {"PGPASSWORD": "other", "PGHOSTADDR": "192.0.2.1", "PGSERVICE": "x", "TERM": "xterm"}
    environ = environment(caller, params, "avnadmin", "", {"PGPASSFILE": "/dev/fd/3"})
    assert environ == {
        "TERM": "xterm",
        "PGPASSFILE": "/dev/fd/3",
        "PGHOST": "2001:db8::1",
        "PGPORT": "21600",
        "PGUSER": "avnadmin",
        "PGDATABASE": "defaultdb",
        "PGSSLMODE": "verify-full",
    }


def test_credentials_come_from_the_environment_before_the_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = home / "credentials.toml"
    file.write_text('endpoint = "http://127.0.0.1:8450/v2"\nkey = "k"\nsecret = "s"\nzone = "ch-gva-2"\n')
    here = {"PGHERD_HOME": str(home)}
    assert find(here).key == "k"
    assert find(here | {"EXOSCALE_API_KEY": "of the real cloud"}).key == "k"
    named = {"EXOSCALE_API_ENDPOINT": "https://db.example.com", "EXOSCALE_API_KEY": "a", "EXOSCALE_API_SECRET": "b"}
    found = find(here | named)
    assert (found.url, found.own_url) == ("https://db.example.com/v2", "https://db.example.com/pgherd/v1")
    assert "secret" not in repr(found)
    for wrong in ({"EXOSCALE_API_ENDPOINT": "http://x/v2"}, named | {"EXOSCALE_API_ENDPOINT": "127.0.0.1:8450"}):
        with pytest.raises(CliError):
            find(here | wrong)


def test_without_an_instance_every_command_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == Exit.OK
    assert "make up" in capsys.readouterr().out
    assert main(["service", "list"]) == Exit.USAGE
    assert "make up" in capsys.readouterr().err


def test_an_api_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXOSCALE_API_ENDPOINT", "http://127.0.0.1:1/v2")
    monkeypatch.setenv("EXOSCALE_API_KEY", "key")
    monkeypatch.setenv("EXOSCALE_API_SECRET", "very-secret")
    assert main(["service", "list"]) == Exit.UNREACHABLE
    captured = capsys.readouterr()
    assert "connection refused" in captured.err
    assert "very-secret" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "line",
    [
        ["-o", "json", "api", "--list", "reveal-dbaas-postgres"],
        ["api", "--list", "reveal-dbaas-postgres", "-o", "json"],
    ],
)
def test_the_form_may_stand_anywhere(
    line: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENDPOINT", "KEY", "SECRET"):
        monkeypatch.setenv(f"EXOSCALE_API_{name}", "http://127.0.0.1:1/v2")
    assert main(line) == Exit.OK
    listed = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in listed] == ["reveal-dbaas-postgres-user-password"]


@pytest.mark.parametrize("line", [["service", "create"], ["service", "nonsense"], ["service", "delete", "demo"]])
def test_usage_errors(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(line) == Exit.USAGE


def test_a_plan_has_a_cell_for_each_header() -> None:
    plan = {"name": "startup-4", "node-count": 1, "node-cpu-count": 2, "node-memory": 4 << 30, "disk-space": 80 << 30}
    plan |= {"max-connections": 100, "backup-config": {"max-count": 3}}
    assert dict(zip(describe.PLAN_HEADERS, describe.plan_row(plan), strict=True))["CONNECTIONS"] == 100
    del plan["max-connections"]  # as from the hosted service
    assert len(describe.plan_row(plan)) == len(describe.PLAN_HEADERS)
