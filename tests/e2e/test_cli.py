"""The command line against a whole instance: the path of a first session, and how commands end."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import Any

from tests.plugins.instance import Instance


def cli(instance: Instance, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return instance.run(*argv, check=False, **({"stdin": subprocess.DEVNULL} | options))


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fresh() -> str:
    return f"cli-{uuid.uuid4().hex[:8]}"


def test_a_first_session(instance: Instance) -> None:
    name = fresh()
    made = cli(
        instance, "service", "create", name, "--plan", "hobbyist-2", "--pg-setting", "jit=off", "--work-mem", "3"
    )
    assert made.returncode == 0, made.stderr
    assert "running" in made.stdout
    assert "jit = false" in made.stdout
    assert name in cli(instance, "service", "list").stdout

    query = "create table t as select 41 as a; update t set a = 42; select a from t"
    assert cli(instance, "service", "psql", name, "--", "-qAtc", query).stdout == "42\n"
    assert cli(instance, "service", "psql", name, "--", "-qAtc", "select 1/0").returncode == 1

    uri = cli(instance, "service", "show", name, "--uri").stdout.strip()
    assert uri.startswith("postgres://avnadmin:")
    assert "password" not in cli(instance, "service", "show", name).stdout.lower()

    options = ("--pgaudit-setting", "feature_enabled=on", "--pgaudit-setting", "log=ddl,role")
    options += ("--pglookout-setting", "max_failover_replication_time_lag=30", "--synchronous-replication", "off")
    audited = answer(cli(instance, "service", "update", name, *options, "-o", "json"))
    assert audited["pgaudit-settings"] == {"feature_enabled": True, "log": ["ddl", "role"]}
    assert audited["pglookout-settings"] == {"max_failover_replication_time_lag": 30}
    assert "feature_enabled = true" in cli(instance, "service", "show", name).stdout
    wrong = cli(instance, "service", "update", name, "--pgaudit-setting", "level=log")
    assert (wrong.returncode, "log_level" in wrong.stderr) == (2, True), wrong.stderr

    changed = answer(cli(instance, "service", "update", name, "--ip-filter", "10.0.0.0/8", "-o", "json"))
    assert changed["ip-filter"] == ["10.0.0.0/8"]
    assert answer(cli(instance, "-o", "json", "service", "update", name, "--clear-ip-filter"))["ip-filter"] == []

    assert cli(instance, "service", "delete", name).returncode == 2
    assert cli(instance, "service", "delete", name, "--yes").returncode == 0
    assert cli(instance, "service", "show", name).returncode == 3
    assert cli(instance, "service", "wait", name, "--state", "deleted").returncode == 0


def test_protection_and_passwords(instance: Instance) -> None:
    name = fresh()
    password = "of-my-own-choice"
    argv = ("service", "create", name, "--plan", "hobbyist-2", "--termination-protection", "--admin-password", "-")
    made = cli(instance, *argv, stdin=None, input=password + "\n")
    assert made.returncode == 0, made.stderr
    assert password in cli(instance, "service", "show", name, "--uri").stdout
    refused = cli(instance, "service", "delete", name, "--yes")
    assert refused.returncode == 4
    assert "--no-termination-protection" in refused.stderr
    assert cli(instance, "service", "update", name, "--no-termination-protection").returncode == 0
    operation = answer(cli(instance, "service", "delete", name, "--yes", "--no-wait", "-o", "json"))
    assert answer(cli(instance, "operation", "show", operation["id"], "--wait", "-o", "json"))["state"] == "success"


def test_refusals_have_codes_and_say_why(instance: Instance) -> None:
    no_plan = cli(instance, "service", "create", fresh())
    assert no_plan.returncode == 2 and "--plan" in no_plan.stderr and "service plans" in no_plan.stderr
    wrong_plan = cli(instance, "service", "create", fresh(), "--plan", "nonsense")
    assert (wrong_plan.returncode, "hobbyist-2" in wrong_plan.stderr) == (4, True)
    wrong_setting = cli(instance, "service", "create", fresh(), "--plan", "hobbyist-2", "--pg-setting", "jot=on")
    assert (wrong_setting.returncode, "jit" in wrong_setting.stderr) == (2, True)
    elsewhere = cli(instance, "service", "create", fresh(), "--plan", "hobbyist-2", "--pg-setting", "work_mem=3")
    assert (elsewhere.returncode, "--work-mem" in elsewhere.stderr) == (2, True)
    assert cli(instance, "service", "show", fresh()).returncode == 3
    for argv in (("service", "delete", "", "--yes"), ("org", "delete", "", "--yes")):
        assert (cli(instance, *argv).returncode, "is empty" in cli(instance, *argv).stderr) == (2, True)
    wrong_state = cli(instance, "service", "wait", fresh(), "--state", "runing")
    assert (wrong_state.returncode, "running" in wrong_state.stderr) == (2, True)
    of_another_product = cli(instance, "api", "list-instances")
    assert (of_another_product.returncode, "--list" in of_another_product.stderr) == (3, True)
    assert cli(instance, "operation", "show", str(uuid.uuid4())).returncode == 3


def test_any_operation_by_its_id(instance: Instance) -> None:
    assert answer(cli(instance, "api", "list-zones"))["zones"]
    assert "BEGIN CERTIFICATE" in answer(cli(instance, "api", "get-dbaas-ca-certificate"))["certificate"]
    name = fresh()
    operation = answer(cli(instance, "api", "create-dbaas-service-pg", name, "plan: hobbyist-2, version: 15"))
    assert cli(instance, "operation", "show", operation["id"], "--wait").returncode == 0
    assert answer(cli(instance, "api", "get-dbaas-service-pg", name))["version"].startswith("15")
    assert cli(instance, "service", "delete", name, "--yes").returncode == 0


def test_organizations_and_keys(instance: Instance) -> None:
    name = fresh()
    assert cli(instance, "org", "create", name).returncode == 0
    assert cli(instance, "org", "create", name).returncode == 4
    made = answer(cli(instance, "key", "create", "reader", "--organization", name, "--role", "read-only", "-o", "json"))
    listed = cli(instance, "key", "list", "--organization", name).stdout
    assert made["key"] in listed
    assert made["secret"] not in listed

    theirs = instance.env | {
        "EXOSCALE_API_ENDPOINT": instance.endpoint,
        "EXOSCALE_API_KEY": made["key"],
        "EXOSCALE_API_SECRET": made["secret"],
    }
    program = [str(instance.program), "service"]
    done = subprocess.run([*program, "list"], env=theirs, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    argv = [*program, "create", fresh(), "--plan", "hobbyist-2"]
    done = subprocess.run(argv, env=theirs, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "role policy" in done.stderr

    assert cli(instance, "key", "revoke", made["key"], "--yes").returncode == 0
    done = subprocess.run([*program, "list"], env=theirs, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert cli(instance, "org", "delete", name, "--yes").returncode == 0
    assert cli(instance, "host", "list").returncode == 0


def test_a_restart_disturbs_nobody(instance: Instance) -> None:
    name = fresh()
    restart = [str(instance.program), "restart"]
    with subprocess.Popen(
        restart, env=instance.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as restarting:
        made = cli(instance, "service", "create", name, "--plan", "hobbyist-2")
        assert made.returncode == 0, made.stderr
        deleted = cli(instance, "service", "delete", name, "--yes")
        assert deleted.returncode == 0, deleted.stderr
    assert restarting.returncode == 0


def test_help_is_quick() -> None:
    """The SDK and rich are not imported before they are needed: that is what makes help quick."""
    code = (
        "import sys; from pgherd.cli.app import main; main(['--help']);"
        "sys.exit([m for m in ('requests', 'exoscale', 'rich') if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Services:" in done.stdout
