"""Up, restart, down, up again: what runs, as whom, what stays, and what is refused."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.plugins.instance import ROOTED, Instance, free_port, until

OWN = ("api", "worker", "agent")


@pytest.fixture(scope="module")
def fresh() -> Iterator[Instance]:
    """An instance of this module's own: the tests below stop and start it, in their order."""
    made = Instance(warm_pool="1")
    try:
        made.up()
        yield made
    finally:
        made.clear()


def living(instance: Instance) -> dict[int, str]:
    """Processes that work in the home directory or name it, with their command lines."""
    home, found = str(instance.home), {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if line and (home in line or os.readlink(entry / "cwd").startswith(home)):
                    found[int(entry.name)] = line
    return found


def pid_of(instance: Instance, name: str) -> int:
    """The process that s6 runs for a service directory."""
    directory = instance.home / "s6" / name
    shown = subprocess.run(["s6-svstat", "-o", "pid", str(directory)], capture_output=True, text=True, check=True)
    return int(shown.stdout)


def pids(instance: Instance) -> dict[str, int]:
    return {name: pid_of(instance, name) for name in (*OWN, "metadata")}


def user_of(pid: int) -> str:
    return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name


def zone(instance: Instance) -> str:
    name: str = requests.get(f"{instance.endpoint}/zone", timeout=5).json()["zones"][0]["name"]
    return name


def test_up_gives_an_api_and_credentials(fresh: Instance) -> None:
    assert zone(fresh) == fresh.exports["EXOSCALE_ZONE"] == "ch-gva-2"
    assert fresh.client().list_dbaas_services() == {"dbaas-services": []}
    assert (fresh.home / "credentials.toml").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not ROOTED, reason="only root gives processes users of their own")
def test_only_the_agent_is_root(fresh: Instance) -> None:
    found = {name: user_of(pid) for name, pid in pids(fresh).items()}
    assert found == {"api": "pgherd", "worker": "pgherd", "agent": "root", "metadata": "pgherd-db"}


@pytest.mark.skipif(not ROOTED, reason="only root gives files other owners")
def test_keys_are_closed_to_others(fresh: Instance) -> None:
    for path, mode in (("secrets", 0o700), ("secrets/keys.toml", 0o600), ("metadata/data", 0o700), ("agent", 0o700)):
        assert (fresh.home / path).stat().st_mode & 0o777 == mode, path
    assert user_of_file(fresh.home / "secrets/keys.toml") == "pgherd"
    for place in ("releases", "s6", "nodes", "warm", "current/bin/pgherd"):
        assert user_of_file(fresh.home / place) == "root", place
        assert not (fresh.home / place).stat().st_mode & 0o022, place


def user_of_file(path: Path) -> str:
    return path.owner()


def test_processes_run_the_release_not_the_checkout(fresh: Instance) -> None:
    for name in OWN:
        words = Path(f"/proc/{pid_of(fresh, name)}/cmdline").read_bytes().split(b"\0")
        assert words[0].decode().startswith(str(fresh.home / "releases")), words


def test_no_secret_in_arguments_or_logs(fresh: Instance) -> None:
    secret = fresh.exports["EXOSCALE_API_SECRET"]
    assert not [line for line in living(fresh).values() if secret in line]
    for log in fresh.home.glob("log/*/*"):
        assert secret not in log.read_text(errors="replace"), log


def test_doctor_finds_nothing_broken_and_then_an_open_file(fresh: Instance) -> None:
    done = fresh.run("doctor", check=False)
    assert done.returncode == 0, done.stdout
    keys = fresh.home / "credentials.toml"
    keys.chmod(0o644)
    done = fresh.run("doctor", check=False)
    assert done.returncode == 1
    assert f"chmod 0600 {keys}" in done.stdout
    keys.chmod(0o600)


def test_second_up_touches_nothing_that_runs(fresh: Instance) -> None:
    before = pids(fresh)
    fresh.run("up")
    assert pids(fresh) == before


def test_restart_leaves_the_metadata_alone(fresh: Instance) -> None:
    before = pids(fresh)
    fresh.run("restart")
    after = pids(fresh)
    assert after["metadata"] == before["metadata"]
    assert all(after[name] != before[name] for name in OWN)
    assert zone(fresh) == "ch-gva-2"


def test_rotated_secrets_still_open(fresh: Instance) -> None:
    assert "k2" in fresh.run("secrets", "rotate").stdout
    assert fresh.client().list_dbaas_services() == {"dbaas-services": []}


def test_down_leaves_no_process_and_up_brings_the_same_instance(fresh: Instance) -> None:
    key = fresh.exports["EXOSCALE_API_KEY"]
    stopped, steady = fresh.create(), fresh.create()
    fresh.run("service", "stop", stopped)
    fresh.run("down")
    assert living(fresh) == {}
    assert str(fresh.home) in fresh.run("down").stdout
    assert living(fresh) == {}
    assert fresh.run("doctor", check=False).returncode == 1
    assert "make up" in fresh.run("secrets", "rotate", check=False).stderr
    fresh.up()
    assert fresh.exports["EXOSCALE_API_KEY"] == key
    until(lambda: fresh.client().get_dbaas_service_pg(name=steady)["state"] == "running", 30, "a service is back")
    shown = fresh.client().get_dbaas_service_pg(name=stopped)
    assert (shown["state"], shown["databases"]) == ("poweroff", ["defaultdb"])
    assert len(list((fresh.home / "nodes").glob("*/data/pgdata/postmaster.pid"))) == 1
    fresh.run("service", "start", stopped)
    for name in (stopped, steady):
        assert fresh.sql(name, "select 1") == [(1,)]
        fresh.delete(name)
    assert fresh.client().list_dbaas_services() == {"dbaas-services": []}


def test_changed_settings_restart_only_our_own_processes(fresh: Instance) -> None:
    before = pids(fresh)
    fresh.env["PGHERD_ZONE"] = "de-fra-1"
    fresh.up()
    after = pids(fresh)
    assert (zone(fresh), fresh.exports["EXOSCALE_ZONE"]) == ("de-fra-1", "de-fra-1")
    assert after["metadata"] == before["metadata"] and after["api"] != before["api"]
    shown = fresh.run("settings").stdout
    assert 'zone = "de-fra-1"' in shown


def test_lost_credentials_are_replaced(fresh: Instance) -> None:
    (fresh.home / "credentials.toml").unlink()
    assert "make up" in fresh.run("env", check=False).stderr
    fresh.up()
    assert fresh.client().list_dbaas_services() == {"dbaas-services": []}


def test_killed_supervision_comes_back(fresh: Instance) -> None:
    for pid, line in living(fresh).items():
        if line.startswith(("s6-", "/bin/sh")) or "/bin/pgherd " in line:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
    fresh.up()
    assert fresh.client().list_dbaas_services() == {"dbaas-services": []}
    done = fresh.run("doctor", check=False)
    assert done.returncode == 0, done.stdout


def test_open_http_is_refused_and_nothing_changes(fresh: Instance) -> None:
    before = pids(fresh)
    fresh.env["PGHERD_LISTEN"] = f"0.0.0.0:{fresh.port}"
    done = fresh.run("up", check=False)
    fresh.env["PGHERD_LISTEN"] = f"127.0.0.1:{fresh.port}"
    assert done.returncode == 1 and "--insecure-http" in done.stderr
    assert pids(fresh) == before


def test_taken_port_is_refused_by_name() -> None:
    made = Instance()
    try:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            made.env["PGHERD_LISTEN"] = f"127.0.0.1:{other.getsockname()[1]}"
            done = made.run("up", check=False)
        assert done.returncode == 1 and "PGHERD_LISTEN" in done.stderr
        assert living(made) == {}
        made.env["PGHERD_LISTEN"] = f"127.0.0.1:{free_port()}"
    finally:
        made.clear()
