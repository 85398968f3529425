"""Terraform through `pgherd terraform-front`: the provider's calls, and an empty plan after every apply."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from exoscale_auth import ExoscaleV2Auth

from tests.contract.terraform import Database, LaterService, Pool, Service, User, jsonencode
from tests.contract.terraform_plugin import Resource, Wire
from tests.plugins.instance import Instance, until

Environment = dict[str, str]


class Shell:
    """A user's shell with a front: its configuration directory and the variables that `eval` would set."""

    def __init__(self, instance: Instance, config: Path) -> None:
        self.instance = instance
        self.config = config
        self.env: Environment = instance.env | {"XDG_CONFIG_HOME": str(config)}

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`pgherd ARGV` of the release."""
        options = {"env": self.env, "timeout": 60} | options
        program = [str(self.instance.program), *argv]
        return subprocess.run(program, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options)

    def variables(self) -> Environment:
        """What `pgherd env --terraform` prints, once a front runs."""

        def printed() -> str:
            return self.run("env", "--terraform").stdout

        lines = until(printed, 30, "the front runs").splitlines()
        pairs = (line.removeprefix("export ").split("=", 1) for line in lines)
        return {name: value.strip("'") for name, value in pairs}


@contextlib.contextmanager
def front_of(shell: Shell) -> Iterator[subprocess.Popen[str]]:
    """A front in the foreground."""
    argv = [str(shell.instance.program), "terraform-front", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, env=shell.env, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def shell(instance: Instance, checked: None, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell of a user who has no front yet."""
    return Shell(instance, tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def environment(shell: Shell) -> Iterator[Environment]:
    """The variables, while a front runs."""
    with front_of(shell):
        yield shell.variables()


@pytest.fixture
def wire(environment: Environment) -> Wire:
    """The provider's clients."""
    return Wire(environment)


#: A group of settings. Keys inside one stay once they were sent (docs/terraform.md), so none is left out later.
VACUUM = {"autovacuum_vacuum_scale_factor": 0.25, "autovacuum_naptime": 30}

#: Configurations of exoscale_dbaas, each with changes that are applied one after the other.
CONFIGURATIONS: dict[str, tuple[type[Service], dict[str, Any], list[dict[str, Any]]]] = {
    "minimal": (Service, {}, [{"plan": "startup-4"}, {"termination_protection": False}]),
    "minimal, a later provider": (LaterService, {}, [{"ip_filter": ["10.0.0.0/8"]}, {}]),
    "everything": (
        Service,
        {
            "plan": "startup-4",
            "version": "15",
            "admin_username": "chief",
            "admin_password": "correct-horse",
            "maintenance_dow": "sunday",
            "maintenance_time": "23:00:01",
            "backup_schedule": "00:05",
            "ip_filter": ["10.1.2.3/8", "192.0.2.7/32", "2001:db8::1/32"],
            "pg_settings": jsonencode(
                {
                    "jit": False,
                    "log_temp_files": 0,
                    "timezone": "Europe/Zurich",
                    "log_line_prefix": "'pid=%p,user=%u,db=%d,app=%a,client=%h '",
                    "pg_stat_statements.track": "all",
                    "autovacuum": VACUUM,
                    "bg-writer": {"bgwriter_lru_multiplier": 2.0},
                    "wal": {"max_slot_wal_keep_size": -1},
                }
            ),
            "pgbouncer_settings": jsonencode(
                {"server_lifetime": 3600, "autodb_pool_mode": "transaction", "min_pool_size": 2}
            ),
            "pglookout_settings": jsonencode({"max_failover_replication_time_lag": 30}),
        },
        [
            {"ip_filter": []},
            {"maintenance_dow": "never", "maintenance_time": "00:00:00"},
            {"pg_settings": jsonencode({"jit": True, "autovacuum": VACUUM | {"autovacuum_naptime": 31}})},
            {"pg_settings": jsonencode({"jit": True, "max_prepared_transactions": 5})},
            {
                "pgbouncer_settings": jsonencode({"server_lifetime": 1800}),
                "pglookout_settings": jsonencode({"max_failover_replication_time_lag": 31}),
            },
            {"backup_schedule": "23:59", "plan": "startup-8"},
        ],
    ),
    "settings come later": (
        LaterService,
        {"version": "15"},
        [
            {"pg_settings": jsonencode({"log_min_duration_statement": 100})},
            {"pgbouncer_settings": jsonencode({"server_idle_timeout": 60})},
            {"ip_filter": ["0.0.0.0/0"], "termination_protection": False},
        ],
    ),
}  # fmt: skip


def applied(resource: Resource) -> None:
    """Apply, and plan again at once, as the next `terraform plan` may."""
    resource.apply()
    assert resource.plan() == {}


@pytest.mark.parametrize(("kind", "config", "changes"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_the_plan_is_empty_after_every_apply(
    instance: Instance,
    wire: Wire,
    name: str,
    kind: type[Service],
    config: dict[str, Any],
    changes: list[dict[str, Any]],
) -> None:
    service = kind(wire, **({"name": name, "plan": "hobbyist-2"} | config))
    applied(service)
    for change in changes:
        service.config |= change
        applied(service)
        assert service.state is not None and (change or service.state["state"])
    until(lambda: service.plan() == {} and (service.state or {})["state"] == "running", 60, "it runs, the plan empty")
    if service.config.get("termination_protection", True):
        service.config["termination_protection"] = False
        applied(service)
    service.destroy()


def test_parts_of_a_service_do_not_drift(wire: Wire, name: str) -> None:
    service = Service(wire, name=name, plan="hobbyist-2", termination_protection=False)
    service.apply()
    user, replicator = User(wire, service=name, username="app"), User(wire, service=name, username="copy")
    replicator.config["allow_replication"] = True
    database = Database(wire, service=name, database_name="shop")
    sorted_otherwise = Database(wire, service=name, database_name="c", lc_collate="C", lc_ctype="C")
    pool = Pool(wire, service=name, name="everyone", database_name="shop")
    theirs = Pool(wire, service=name, name="app", database_name="shop", username="app", mode="session", size=3)
    parts = [user, replicator, database, sorted_otherwise, pool, theirs]
    for part in parts:
        applied(part)
    assert (pool.state or {})["username"] == "" and (pool.state or {})["size"] > 0
    password, uri = (user.state or {})["password"], (pool.state or {})["connection_uri"]
    for change in ({"mode": "statement"}, {"size": 2}, {"mode": "transaction", "size": 4}):
        theirs.config |= change
        applied(theirs)
    service.config["pg_settings"] = jsonencode({"jit": False})
    applied(service)
    assert [part.plan() for part in parts] == [{}] * len(parts)
    assert ((user.state or {})["password"], (pool.state or {})["connection_uri"]) == (password, uri)
    replicator.config["allow_replication"] = False  # replaces it
    applied(replicator)
    for part in (theirs, pool, database, user):
        part.destroy()
        assert part.plan() == {"": "does not exist"}
    service.destroy()


def test_an_imported_service_does_not_drift(wire: Wire, service: str) -> None:
    imported = Service(wire, name=service, plan="hobbyist-2", termination_protection=False)
    imported.import_state()
    assert imported.plan() == {}


def test_the_order_of_calls(wire: Wire, name: str) -> None:
    """The model makes the calls that the provider was seen to make; what is tested above is that they work."""
    service = Service(wire, name=name, plan="hobbyist-2", pgbouncer_settings=jsonencode({"server_lifetime": 60}))
    service.config |= {"termination_protection": False}
    service.apply()
    path = f"/dbaas-postgres/{name}"
    created = [call for call, before in zip(wire.calls, ["", *wire.calls], strict=False) if call != before]
    assert [call for call in created if not call.endswith("/operation")] == [
        "GET /dbaas-settings-pg", f"POST {path}", f"GET {path}", "GET /zone", f"PUT {path}", f"GET {path}",
        "GET /dbaas-ca-certificate",
    ]  # fmt: skip
    wire.calls.clear()
    service.config["plan"] = "startup-4"
    service.apply()
    refresh = [f"GET {path}", "GET /dbaas-ca-certificate"]
    assert wire.calls == [*refresh, "GET /dbaas-settings-pg", f"PUT {path}", f"GET {path}"]
    wire.calls.clear()
    service.destroy()
    assert wire.calls == [f"DELETE /dbaas-service/{name}"]
    assert service.plan() == {"": "does not exist"}
    applied(service)  # as terraform replaces: the name is free at once
    service.destroy()


def test_a_password_is_found_as_the_data_source_looks_for_it(wire: Wire, service: str) -> None:
    wire.switch()
    shown = wire.v3("GET", f"/dbaas-postgres/{service}")
    assert re.fullmatch(r"(.*)://avnadmin@(.*)", shown["uri"])
    assert isinstance(shown["uri-params"]["port"], str)
    assert wire.v3("GET", f"/dbaas-postgres/{service}/user/avnadmin/password/reveal")["password"]


class TestFront:
    """The proxy itself."""

    @staticmethod
    def _session(environment: Environment, proxy: str = "") -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.proxies = {"https": proxy or environment["HTTPS_PROXY"]}
        session.verify = environment["SSL_CERT_FILE"]
        return session

    def test_one_connection_serves_many_requests_of_any_size(self, environment: Environment) -> None:
        """Kept alive, byte for byte: names that are escaped, bodies over the API's own limit."""
        auth = ExoscaleV2Auth(environment["EXOSCALE_API_KEY"], environment["EXOSCALE_API_SECRET"])
        root = environment["EXOSCALE_API_ENDPOINT"]
        with self._session(environment) as session:
            for path, status in (
                ("/zone", 200),
                ("/dbaas-postgres/a%2Fb%20c%C3%A9", 404),
                ("/dbaas-service?a=b&c", 200),
            ):
                assert session.get(root + path, auth=auth).status_code == status, path
            large = session.post(f"{root}/dbaas-postgres/x", json={"plan": "x" * (3 << 20)}, auth=auth)
            assert (large.status_code, "larger than" in large.json()["message"]) == (413, True)
            pieces = (b'{"plan":', b' "startup-5"}')
            chunked = session.post(f"{root}/dbaas-postgres/x", data=iter(pieces))
            assert chunked.status_code == 403, "unsigned, and read to its end"

    def test_without_the_token_it_does_nothing(self, environment: Environment) -> None:
        listen = environment["HTTPS_PROXY"].rpartition("@")[2]
        for proxy in (f"http://{listen}", f"http://terraform-front:guess@{listen}"):
            with pytest.raises(requests.exceptions.ProxyError, match="407"):
                self._session(environment, proxy).get(f"{environment['EXOSCALE_API_ENDPOINT']}/zone")
        plain = requests.get(f"http://{listen}/v2/zone", timeout=10)
        assert plain.status_code == 407 and "zones" not in plain.text

    @pytest.mark.parametrize(
        ("host", "text"),
        [
            ("api-ch-dk-2.exoscale.com", "403 This instance is zone"),
            ("api.exoscale.com", "403 .* the hosted service"),
            ("api-ch-gva-2.exoscale.com:8443", "403 .* the hosted service"),
        ],
    )
    def test_the_hosted_service_is_not_called(self, environment: Environment, host: str, text: str) -> None:
        with pytest.raises(requests.exceptions.ProxyError, match=text):
            self._session(environment).get(f"https://{host}/v2/zone")

    def test_other_names_are_passed_on(self, instance: Instance, environment: Environment) -> None:
        """A tunnel to any other host, here this machine under a name of its own, carries what it is given."""
        import socket
        import threading

        with socket.create_server(("127.0.0.1", 0)) as server:
            echo = threading.Thread(target=lambda: (taken := server.accept()[0]).sendall(taken.recv(100)))
            echo.start()
            head = requests.auth._basic_auth_str(
                "terraform-front", environment["HTTPS_PROXY"].split(":")[2].split("@")[0]
            )
            listen = environment["HTTPS_PROXY"].rpartition("@")[2].split(":")
            with socket.create_connection((listen[0], int(listen[1])), timeout=10) as tunnel:
                where = f"localhost:{server.getsockname()[1]}"
                tunnel.sendall(
                    f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\nProxy-Authorization: {head}\r\n\r\n".encode()
                )
                assert tunnel.recv(100).startswith(b"HTTP/1.1 200 ")
                tunnel.sendall(b"ping")
                assert tunnel.recv(100) == b"ping"
            echo.join(10)

    def test_secrets_are_for_the_user_alone(self, shell: Shell, environment: Environment) -> None:
        kept = shell.config / "pgherd/terraform-front"
        assert kept.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in kept.iterdir()} >= {"ca.pem", "ca-key.pem", "bundle.pem", "front.json"}
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept.iterdir())

    def test_a_second_one_and_wrong_words(self, shell: Shell, environment: Environment) -> None:
        again = shell.run("terraform-front", "--listen", "127.0.0.1:0")
        assert (again.returncode, "A front runs already" in again.stderr) == (1, True)
        open_to_all = shell.run("terraform-front", "--listen", "0.0.0.0:8451")
        assert (open_to_all.returncode, "loopback" in open_to_all.stderr) == (2, True)
        nowhere = shell.run("terraform-front", "--listen", "127.0.0.1:0", env=shell.env | {"XDG_CONFIG_HOME": "/proc"})
        assert (nowhere.returncode, "XDG_CONFIG_HOME" in nowhere.stderr) == (1, True)
        keyless = shell.run("env", "--terraform", env=shell.env | {"EXOSCALE_API_ENDPOINT": "http://127.0.0.1:1/v2"})
        assert (keyless.returncode, "EXOSCALE_API_KEY" in keyless.stderr, keyless.stdout) == (1, True, "")
        elsewhere = shell.config / "pgherd/terraform-front/front.json"
        kept = elsewhere.read_text()
        elsewhere.write_text(kept.replace(shell.instance.endpoint, "https://db.example.com/v2"))
        mixed = shell.run("env", "--terraform")
        assert (mixed.returncode, "db.example.com" in mixed.stderr, mixed.stdout) == (1, True, "")
        elsewhere.write_text(kept)
        nothing = shell.run("terraform-front", "--", "no-such-program-anywhere")
        assert (nothing.returncode, "Cannot run no-such-program-anywhere" in nothing.stderr) == (2, True)

    def test_a_shell_that_is_set_up(self, shell: Shell, environment: Environment) -> None:
        """The command line works in it, through the front; and a front in it finds the instance, not itself."""
        there = {**shell.env, **environment}
        listed = shell.run("service", "list", "-o", "json", env=there)
        assert listed.returncode == 0, listed.stderr
        nested = shell.run("terraform-front", "--", "sh", "-c", "exit 7", env=there)
        assert nested.returncode == 7, nested.stderr

    def test_a_command_gets_its_variables_and_gives_its_code(self, shell: Shell) -> None:
        script = 'test "$SSL_CERT_FILE" = "$REQUESTS_CA_BUNDLE" && echo "$HTTPS_PROXY" && kill -TERM $$'
        done = shell.run("terraform-front", "--", "sh", "-c", script)
        assert done.returncode == 128 + signal.SIGTERM, done.stderr
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(done.stdout.strip(), timeout=5)

    def test_an_interrupt_is_the_command_s(self, shell: Shell) -> None:
        """Ctrl-C reaches both; Terraform then finishes what it does, and its calls still get through."""
        script = (
            "import os, signal, sys, requests\n"
            "def last(*_):\n"
            "    sys.exit(requests.get(os.environ['EXOSCALE_API_ENDPOINT'] + '/zone').status_code - 197)\n"
            "signal.signal(signal.SIGINT, last)\n"
            "print('ready', flush=True)\n"
            "signal.pause()\n"
        )
        argv = [str(shell.instance.program), "terraform-front", "--", sys.executable, "-c", script]
        with subprocess.Popen(argv, env=shell.env, stdout=subprocess.PIPE, text=True, start_new_session=True) as front:
            assert front.stdout and front.stdout.readline() == "ready\n"
            os.killpg(front.pid, signal.SIGINT)
            assert front.wait(60) == 3

    def test_when_no_front_runs(self, shell: Shell, tmp_path: Path) -> None:
        done = shell.run("env", "--terraform", env=shell.env | {"XDG_CONFIG_HOME": str(tmp_path)})
        assert (done.returncode, done.stdout) == (1, "")
        assert "pgherd terraform-front" in done.stderr

    def test_the_variables_last_when_the_front_is_started_again(self, shell: Shell, tmp_path: Path) -> None:
        """Certificates and token stay, so only a new port would make a shell's variables stale."""
        own = Shell(shell.instance, tmp_path)
        seen = []
        for _ in range(2):
            with front_of(own):
                seen.append(own.variables())
                assert self._session(seen[-1]).get(f"{seen[-1]['EXOSCALE_API_ENDPOINT']}/zone").status_code == 200
        users = {found["HTTPS_PROXY"].rpartition("@")[0] for found in seen}
        assert len(users) == 1 and (tmp_path / "pgherd/terraform-front/ca.pem").exists()

    @pytest.mark.skipif(shutil.which("terraform") is None, reason="there is no terraform here")
    def test_terraform_itself(self, shell: Shell, tmp_path: Path) -> None:
        """Its own HTTP client, which is the provider's: it finds the proxy, believes the CA and reads the answer.

        State in an HTTP backend is the one thing that it fetches without a provider; zones are no state.
        """
        address = "https://api-ch-gva-2.exoscale.com/v2/zone"
        (tmp_path / "main.tf").write_text(f'terraform {{\n  backend "http" {{\n    address = "{address}"\n  }}\n}}\n')
        quiet = shell.env | {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}
        argv = ("terraform-front", "--", "terraform", f"-chdir={tmp_path}")
        shell.run(*argv, "init", "-no-color", env=quiet)
        done = shell.run(*argv, "state", "list", "-no-color", env=quiet)
        assert 'does not have a "version" attribute' in done.stderr + done.stdout, done


def test_the_rest_of_the_environment_stays(shell: Shell, environment: Environment) -> None:
    """What is not ours is passed on, what a user bypassed stays bypassed."""
    done = shell.run("env", "--terraform", env=shell.env | {"NO_PROXY": "internal.example,10.0.0.1"})
    assert "internal.example,10.0.0.1,localhost" in done.stdout
    assert not os.environ.get("EXOSCALE_API_KEY") or os.environ["EXOSCALE_API_KEY"] not in done.stdout
