"""What an operator does against the loss of the machine or of its metadata, on an instance of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.processes import metadata
from tests.plugins.instance import Instance, running_instance

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
