"""What an operator does against the loss of the machine or of its metadata, on an instance of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.contract.processes import metadata
from tests.plugins.instance import Instance, running_instance, until

pytestmark = pytest.mark.repository

PASSPHRASE = "a passphrase of tests"


@pytest.fixture(scope="module")
def own() -> Iterator[Instance]:
    with running_instance() as made:
        yield made


def findings(instance: Instance, what: str) -> list[str]:
    """The levels of what the doctor says of `what`."""
    done = instance.run("doctor", "-o", "json", check=False)
    return [one["level"] for one in json.loads(done.stdout) if one["what"] == what]


def test_keys_are_exported_once_and_the_doctor_says_so(own: Instance, tmp_path: Path) -> None:
    assert findings(own, "keys") == ["warning"]
    secret, target = tmp_path / "passphrase", tmp_path / "keys"
    secret.write_text(PASSPHRASE + "\n")
    own.run("secrets", "export", str(target), "--passphrase", f"@{secret}")
    assert target.stat().st_mode & 0o777 == 0o600 and "[keys]" not in target.read_text()
    assert findings(own, "keys") == ["ok"]
    events = own.call("GET", "/pgherd/v1/event?limit=1").json()["events"]
    assert (events[0]["command"], events[0]["subject"]) == ("export-secrets", "k1")

    again = own.run("secrets", "export", str(target), check=False)
    assert again.returncode == 1 and "exists already" in again.stderr
    inside = own.run("secrets", "export", str(own.home / "copy"), check=False)
    assert inside.returncode == 1 and "must not lie" in inside.stderr
    argument = own.run("secrets", "export", str(tmp_path / "other"), "--passphrase", PASSPHRASE, check=False)
    assert argument.returncode == 1 and not (tmp_path / "other").exists()

    own.run("secrets", "rotate")
    events = own.call("GET", "/pgherd/v1/event?limit=1000").json()["events"]
    on_it = [(one["command"], one["subject"]) for one in events if one["remote"] == "this machine"]
    made = ("create-api-key", f"operator/default/operator/{own.key[0]}")
    assert on_it == [("rotate-secrets", "k2"), ("export-secrets", "k1"), made]
    assert findings(own, "keys") == ["warning"]
    shown = own.run("secrets", "export", "-")
    assert "[keys]" in shown.stdout and "k2" in shown.stdout
    assert findings(own, "keys") == ["ok"]
    running = own.run("secrets", "import", str(target), "--passphrase", f"@{secret}", check=False)
    assert running.returncode == 1 and "make down" in running.stderr
    logs = subprocess.run(["grep", "-rlF", PASSPHRASE, str(own.home / "log")], capture_output=True, check=False)
    assert logs.stdout == b""


def test_imported_keys_open_what_they_sealed(own: Instance, tmp_path: Path) -> None:
    saved = own.run("secrets", "export", "-", "--passphrase", "-", input=PASSPHRASE + "\n").stdout
    keys = own.home / "secrets/keys.toml"
    before, owner = keys.read_text(), keys.stat().st_uid
    own.run("down")
    export = tmp_path / "export"
    export.write_text(saved)
    # Another machine has made keys of its own.
    os.chown(keys, owner, -1)
    keys.write_text(before.replace("k2", "k9"))
    done = own.run("secrets", "import", str(export), "--passphrase", "-", input=PASSPHRASE + "\n", check=False)
    assert done.returncode == 1 and "--replace" in done.stderr and "k9" in keys.read_text()
    wrong = own.run("secrets", "import", str(export), "--passphrase", "-", input="another one\n", check=False)
    assert wrong.returncode == 1 and "passphrase" in wrong.stderr
    own.run("secrets", "import", str(export), "--replace", "--passphrase", "-", input=PASSPHRASE + "\n")
    assert keys.read_text() == before and (keys.stat().st_uid, keys.stat().st_mode & 0o777) == (owner, 0o600)
    assert "k9" in keys.with_name("keys.toml.before-import").read_text()
    own.up()
    assert own.client().list_dbaas_services() == {"dbaas-services": []}
    assert metadata(own, "select count(*) from organization") == "1"


def unknown(instance: Instance) -> dict[str, dict[str, Any]]:
    """Nodes that hosts report and the metadata does not know, by the name of their service."""
    hosts = instance.call("GET", "/pgherd/v1/host").json()["hosts"]
    return {node["service"]: node for host in hosts for node in host["unknown-nodes"]}


def state_of(instance: Instance, name: str) -> tuple[str, str]:
    service = instance.client().get_dbaas_service_pg(name=name)
    return service["state"], service["node-states"][0].get("reason", "")


@pytest.mark.timeout(300)
def test_older_metadata_deletes_nothing_and_empties_nothing(own: Instance) -> None:
    """Row C3: services made and deleted since the copy, and one that was changed."""
    client = own.client()
    for name in ("kept", "deleted"):
        own.create(name)
        own.sql(name, "create table t as select 1 as a")
    own.run("platform", "backup")
    shown = json.loads(own.run("platform", "status", "-o", "json").stdout)
    assert shown["ready"] and len(shown["backups"]) >= 1
    ended = datetime.fromisoformat(shown["backups"][-1]["time"])
    until(lambda: datetime.now(UTC) > ended + timedelta(seconds=1.1), 10, "the backup's second is over")
    then = datetime.now(UTC).isoformat()

    for _ in range(3):
        own.finished(client.update_dbaas_service_pg(name="kept", pg_settings={"jit": False}))
    for name in ("born", "unwanted", "moved"):
        own.create(name, pg_settings={"log_min_duration_statement": 1234})
    own.sql("born", "create table t as select 42 as a")
    own.finished(client.create_dbaas_postgres_user(service_name="born", username="reader"))
    pool = {"name": "p", "database-name": "defaultdb", "mode": "session", "size": 2, "username": "reader"}
    own.finished(own.call("POST", "/v2/dbaas-postgres/born/connection-pool", pool).json())
    before = client.get_dbaas_service_pg(name="born")
    dsn, password = own.dsn("born"), client.reveal_dbaas_postgres_user_password(service_name="born", username="reader")
    # Its first one may just be running.
    until(lambda: own.run("backup", "create", "born", check=False).returncode == 0, 60, "it is backed up")
    backups = own.call("GET", "/pgherd/v1/service/born/backup").json()["backups"]
    own.delete("deleted")

    with psycopg.connect(dsn) as session:
        early = own.run("platform", "restore", "--yes", "--to", "2001-01-01T00:00:00Z", check=False)
        late = own.run("platform", "restore", "--yes", "--to", "2999-01-01T00:00:00Z", check=False)
        assert early.returncode == 1 and "no backup had ended by this time" in early.stderr
        assert late.returncode == 1 and "still to come" in late.stderr
        own.run("platform", "restore", "--yes", "--to", then)
        own.up()
        client = own.client()
        found = until(
            lambda: set(unknown(own)) == {"born", "unwanted", "moved"} and unknown(own), 30, "the host reports them"
        )
        assert session.execute("select a from t").fetchone() == (42,)
        names = {service["name"] for service in client.list_dbaas_services()["dbaas-services"]}
        assert names == {"kept", "deleted"}
        assert findings(own, "nodes") == ["warning"]

        # What was deleted since does not come back as an empty cluster; it can be deleted again.
        until(lambda: "was deleted" in state_of(own, "deleted")[1], 30, "GET says what became of it")
        assert state_of(own, "deleted")[0] == "rebuilding"
        directories = own.node_directories()
        assert len(directories) == 4
        own.delete("deleted")
        assert own.node_directories() == directories

        # The host goes on above what it has seen, with what the metadata says.
        until(lambda: own.sql("kept", "show jit") == [("on",)], 30, "the older wish is in force")
        assert own.sql("kept", "select a from t") == [(1,)]
        done = own.finished(client.update_dbaas_service_pg(name="kept", pg_settings={"jit": False}))
        assert done["state"] == "success" and own.sql("kept", "show jit") == [("off",)]

        listed = own.run("host", "list").stdout
        assert "born" in listed and found["born"]["id"] in listed
        taken = own.run("host", "adopt", found["born"]["id"], "--name", "kept", check=False)
        assert taken.returncode == 4 and "already taken" in taken.stderr
        own.run("host", "adopt", found["born"]["id"])
        assert session.execute("select a from t").fetchone() == (42,), "the session was not cut"

    after = client.get_dbaas_service_pg(name="born")
    same = (
        "plan",
        "version",
        "uri",
        "pg-settings",
        "databases",
        "users",
        "ip-filter",
        "maintenance",
        "backup-schedule",
    )
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert [p["name"] for p in after["connection-pools"]] == ["p"] and after["state"] == "running"
    assert after["termination-protection"] is True
    assert own.call("GET", "/pgherd/v1/service/born/backup").json()["backups"] == backups
    own.run("backup", "create", "born")
    with psycopg.connect(dsn) as session, psycopg.connect(own.dsn("kept")):
        assert session.execute("select a from t").fetchone() == (42,)
    params = after["uri-params"] | {"user": "reader", "password": password["password"]}
    with psycopg.connect(psycopg.conninfo.make_conninfo(**params | {"port": int(params["port"]) + 1, "dbname": "p"})):
        pass
    hidden = own.call("GET", "/v2/dbaas-postgres/born/user/avnadmin/password/reveal")
    assert hidden.status_code == 404 and "not known here" in hidden.text
    reset = client.reset_dbaas_postgres_user_password(service_name="born", username="avnadmin")
    assert own.finished(reset)["state"] == "success" and own.sql("born", "select a from t") == [(42,)]

    # Its port was given away meanwhile.
    port = found["moved"]["port"]
    metadata(own, f"insert into port_block values ({port}, gen_random_uuid())")
    own.run("host", "adopt", found["moved"]["id"])
    until(lambda: state_of(own, "moved")[0] == "running", 30, "it runs on another port")
    assert int(client.get_dbaas_service_pg(name="moved")["uri-params"]["port"]) != port
    hidden = own.finished(client.reset_dbaas_postgres_user_password(service_name="moved", username="avnadmin"))
    assert hidden["state"] == "success" and own.sql("moved", "select 1") == [(1,)]

    own.run("host", "forget", found["unwanted"]["id"], "--yes")
    until(lambda: not unknown(own), 30, "the forgotten node is gone")
    assert len(own.node_directories()) == 3
    again = own.call("DELETE", f"/pgherd/v1/host/local/node/{found['unwanted']['id']}")
    assert again.status_code == 404


def test_backups_of_the_metadata_wait_for_each_other(own: Instance) -> None:
    """As one asked for while the agent takes that of the day."""

    until(lambda: not (own.home / "metadata/restored").exists(), 60, "the restore is followed by a backup")
    before = metadata_backups(own)
    with ThreadPoolExecutor(3) as pool:
        said = [done.stderr for done in pool.map(lambda _: own.run("platform", "backup"), range(3))]
    assert metadata_backups(own) == before + 3 and any("waiting for its end" in text for text in said), said


@pytest.mark.timeout(600)
def test_the_machine_is_lost(own: Instance, tmp_path: Path) -> None:
    """Keys that were exported and the metadata's repository, or a copy of it, bring everything but the services' data
    back; and what came after that too, when the new machine is lost as soon."""
    keys, copy = tmp_path / "keys", tmp_path / "platform"
    own.run("secrets", "export", str(keys))
    own.run("platform", "backup")
    before = {one["name"]: one["plan"] for one in own.client().list_dbaas_services()["dbaas-services"]}
    known, timeline = metadata_backups(own), max(histories(own), default=1)
    own.run("down")
    place = own.bucket.settings(own.prefix) if own.bucket else {}
    if not place:
        subprocess.run(["cp", "-a", str(own.home / "backups/platform"), str(copy)], check=True)
    with running_instance(zone="ch-gva-2", **place) as other:
        other.run("down")
        # As in a home that is younger than its agent's patience: what says that there is a repository is not there yet.
        (other.home / "metadata/config/archiving").unlink(missing_ok=True)
        other.run("secrets", "import", str(keys), "--replace")
        if not place:
            shutil.rmtree(other.home / "backups/platform")
            subprocess.run(["cp", "-a", str(copy), str(other.home / "backups/platform")], check=True)
        other.run("platform", "restore", "--yes")
        other.up()
        client = other.client()
        assert {one["name"]: one["plan"] for one in client.list_dbaas_services()["dbaas-services"]} == before
        # What was sealed for the lost machine is sealed anew for this one first.
        if place:
            until(lambda: state_of(other, "born")[0] == "running", 180, "what has a backup there is made anew from it")
            reset = other.call("PUT", "/v2/dbaas-postgres/born/user/avnadmin/password/reset", {})
            assert other.finished(reset.json())["state"] == "success"
            assert other.sql("born", "select a from t") == [(42,)]
        else:
            until(lambda: "gone" in state_of(other, "kept")[1], 180, "GET says what became of its data")
            assert state_of(other, "kept")[0] != "running"
        assert [p["name"] for p in client.get_dbaas_service_pg(name="born")["connection-pools"]] == ["p"]

        until(lambda: max(histories(other), default=1) == timeline + 1, 30, "the archive says where the timelines part")

        until(lambda: metadata_backups(other) > known, 60, "a backup is taken soon")
        until(lambda: not (other.home / "metadata/restored").exists(), 10, "and only one")
        assert other.call("POST", "/pgherd/v1/organization", {"name": "after-the-loss"}).status_code == 200
        other.run("platform", "restore", "--yes")
        other.up()
        assert "after-the-loss" in other.run("org", "list").stdout
        assert max(histories(other)) == timeline + 2


def metadata_backups(instance: Instance) -> int:
    """How many the metadata has."""
    return len(json.loads(instance.run("platform", "status", "-o", "json").stdout)["backups"])


def histories(instance: Instance) -> list[int]:
    """The timelines that the metadata's archive tells the beginning of."""
    names = instance.stored("platform").names("archive/main/")
    return [int(Path(name).name[:8], 16) for name in names if name.endswith(".history")]
