"""Settings: where a value comes from, what is refused, and how the processes of an instance get them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pgherd.errors import Incorrect
from pgherd.home import Home
from pgherd.instance import credentials, effective, settings_report
from pgherd.instance.accounts import Accounts
from pgherd.settings import Settings, load, refuse_open_http

NOBODY = Accounts(None, None, None)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def env(home: Path, **values: str) -> dict[str, str]:
    return {"PGHERD_HOME": str(home), **{f"PGHERD_{k.upper()}": v for k, v in values.items()}}


def test_defaults(home: Path) -> None:
    settings = load(env(home))
    assert settings.listen == "127.0.0.1:8450"
    assert settings.api_url == "http://127.0.0.1:8450/v2"
    assert settings.zone == "ch-gva-2"
    assert settings.root == home


def test_environment_wins_over_file_wins_over_default(home: Path) -> None:
    (home / "pgherd.toml").write_text('zone = "de-fra-1"\nwarm-pool = 7\nlisten = "127.0.0.1:9000"\n')
    settings = load(env(home, listen="127.0.0.1:9001"))
    assert (settings.zone, settings.warm_pool, settings.listen) == ("de-fra-1", 7, "127.0.0.1:9001")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen", "8450"),
        ("listen", "127.0.0.1:0"),
        ("zone", "Geneva"),
        ("service_ports", "30000-20000"),
        ("service_ports", "30000-40000"),
        ("warm_pool", "many"),
        ("warm_pool", "-1"),
        ("worker_concurrency", "0"),
        ("memory_cap_percent", "101"),
        ("insecure_http", "perhaps"),
        ("public_url", "ftp://x/v2"),
        ("tls_key", "/only/one/of/both"),
    ],
)
def test_wrong_value_names_the_setting(home: Path, name: str, value: str) -> None:
    with pytest.raises(Incorrect, match=name):
        load(env(home, **{name: value}))


@pytest.mark.parametrize("text", ["no-such-thing = 1\n", 'home = "/x"\n', "zone = \n", 'warm_pool = "4x"\n'])
def test_wrong_file_is_refused(home: Path, text: str) -> None:
    (home / "pgherd.toml").write_text(text)
    with pytest.raises(Incorrect):
        load(env(home))


def test_secret_value_is_not_in_the_refusal(home: Path) -> None:
    (home / "pgherd.toml").write_text("database_url = 12345678\n")
    with pytest.raises(Incorrect) as refusal:
        load(env(home))
    assert "12345678" not in str(refusal.value)


@pytest.mark.parametrize("listen", ["0.0.0.0:8450", "192.0.2.1:8450", "[::]:8450", "db.example.com:8450"])
def test_plain_http_for_others_is_refused(home: Path, listen: str) -> None:
    with pytest.raises(Incorrect, match="insecure-http"):
        refuse_open_http(load(env(home, listen=listen)))
    refuse_open_http(load(env(home, listen=listen, insecure_http="1")))
    refuse_open_http(load(env(home, listen=listen, tls_certificate="/c.pem", tls_key="/k.pem")))


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_plain_http_for_this_machine_is_served(home: Path, listen: str) -> None:
    refuse_open_http(load(env(home, listen=listen)))


def test_processes_get_what_up_was_given(home: Path) -> None:
    given = env(home, zone="de-fra-1", database_url="postgresql://u:it's a secret@db/x", agent_database_url="x")
    effective.remember(Home(home), given, NOBODY)
    settings = effective.running(env(home))
    assert (settings.zone, settings.database_url) == ("de-fra-1", "postgresql://u:it's a secret@db/x")
    assert (home / "settings.env").stat().st_mode & 0o777 == 0o600
    assert effective.running(env(home, zone="at-vie-1")).zone == "at-vie-1"


def test_next_up_without_them_forgets(home: Path) -> None:
    effective.remember(Home(home), env(home, zone="de-fra-1"), NOBODY)
    effective.remember(Home(home), env(home), NOBODY)
    assert effective.running(env(home)).zone == "ch-gva-2"


def test_the_home_is_named_by_its_variable_alone(home: Path) -> None:
    (home / "pgherd.toml").write_text('home = "/elsewhere"\n')
    with pytest.raises(Incorrect, match="PGHERD_HOME"):
        load(env(home))


def test_unknown_variables_are_found() -> None:
    assert effective.unknown({"PGHERD_LISTN": "x", "PGHERD_LISTEN": "y", "PATH": "z"}) == ["PGHERD_LISTN"]


def test_report_lists_every_setting_and_hides_secrets(home: Path) -> None:
    (home / "pgherd.toml").write_text("warm_pool = 9\n")
    effective.remember(Home(home), env(home, database_url="postgresql://u:hush@db/x", agent_database_url="y"), NOBODY)
    rows = {row["name"]: row for row in settings_report.rows(env(home, zone="de-fra-1"))}
    assert set(rows) == {f.name for f in dataclasses.fields(Settings)}
    assert {n: rows[n]["from"] for n in ("zone", "warm_pool", "database_url", "listen")} == {
        "zone": "environment", "warm_pool": "pgherd.toml", "database_url": "last up", "listen": "default",
    }  # fmt: skip
    text = settings_report.render(env(home), as_json=False)
    assert "hush" not in text and "(hidden)" in text
    assert all(row["meaning"] for row in rows.values())


def test_credentials_survive_and_quote(home: Path) -> None:
    path = home / "credentials.toml"
    settings = load(env(home, zone="de-fra-1"))
    credentials.write(path, settings, ("EXOkey", 'it\'s "hard" \\ $HOME'))
    assert path.stat().st_mode & 0o777 == 0o600
    assert credentials.read(path)["secret"] == 'it\'s "hard" \\ $HOME'
    credentials.write(path, load(env(home, listen="127.0.0.1:9000")), None)
    found = credentials.read(path)
    assert (found["key"], found["endpoint"], found["zone"]) == ("EXOkey", "http://127.0.0.1:9000/v2", "ch-gva-2")
    lines = credentials.export_lines(path).splitlines()
    assert lines[0] == "export EXOSCALE_API_ENDPOINT=http://127.0.0.1:9000/v2"
    assert [line.split("=")[0] for line in lines] == [
        f"export EXOSCALE_{n}" for n in ("API_ENDPOINT", "API_KEY", "API_SECRET", "ZONE")
    ]


def test_missing_credentials_say_what_to_do(home: Path) -> None:
    with pytest.raises(Incorrect, match="make up"):
        credentials.export_lines(home / "credentials.toml")


def test_endpoint_of_a_listener_on_every_address(home: Path) -> None:
    settings = load(env(home, listen="0.0.0.0:8450", advertised_host="db1.example.com", insecure_http="1"))
    assert credentials.endpoint(settings) == "http://db1.example.com:8450/v2"
