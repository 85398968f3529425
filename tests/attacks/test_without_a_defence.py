"""Six defences, each taken away for a moment: the attack that it stops then succeeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd.drivers import extensions, hba
from tests.attacks.conftest import Fort
from tests.plugins.host import MAJOR

_GRANT = "GRANT pg_execute_server_program TO avnadmin"
_HARDENED = "UPDATE pg_authid SET rolsuper = {} WHERE rolname = 'pg_execute_server_program'"


@pytest.fixture
def rendered_anew(fort: Fort) -> Iterator[Callable[[], None]]:
    """Let the agent write the configuration again; at the end as it was."""

    def render() -> None:
        fort.spec = fort.host.change(fort.spec)
        fort.host.until_in_force(fort.spec)

    yield render
    render()


@pytest.mark.skipif(int(MAJOR) > 15, reason="from 16 on only who has them with ADMIN may grant them")
def test_powerful_roles_that_are_no_superusers_are_granted_and_run_programs(fort: Fort, target: Path) -> None:
    copy = f"COPY (SELECT 'written') TO PROGRAM 'cat >{target}'"
    fort.refused("avnadmin", _GRANT, copy)
    fort.superuser(_HARDENED.format("false"))
    try:
        assert fort.tries("avnadmin", _GRANT, copy) == [None, None]
        assert target.read_text() == "written\n"
    finally:
        fort.superuser("REVOKE pg_execute_server_program FROM avnadmin;" + _HARDENED.format("true"))


def test_without_the_guard_an_extension_goes_where_its_user_may_not_write(fort: Fort) -> None:
    create = "CREATE EXTENSION tcn SCHEMA pg_catalog"
    fort.refused("avnadmin", create)
    fort.superuser("ALTER EVENT TRIGGER pgherd_after_command DISABLE", "defaultdb")
    try:
        assert fort.tries("avnadmin", create) == [None]
    finally:
        fort.superuser(
            "DROP EXTENSION IF EXISTS tcn; ALTER EVENT TRIGGER pgherd_after_command ENABLE ALWAYS", "defaultdb"
        )


def test_without_the_check_of_hosts_a_subscription_is_the_superuser_on_the_socket(fort: Fort) -> None:
    run = fort.host.directory(fort.spec) / "run"
    here = f"host={run} port={fort.spec.port} dbname=defaultdb user=postgres password=x"
    create = f"SELECT pgherd.create_subscription('s', '{here}', 'nothing', 's', false)"
    fort.refused("avnadmin", create)
    body = "CREATE OR REPLACE FUNCTION pgherd.require_remote(host text) RETURNS void LANGUAGE plpgsql STABLE"
    body += " SET search_path = pg_catalog, pg_temp AS "
    checked = fort.superuser("SELECT prosrc FROM pg_proc WHERE proname = 'require_remote'", "defaultdb")
    fort.superuser(body + "$$ BEGIN END $$", "defaultdb")
    try:
        assert fort.tries("avnadmin", create) == [[("",)]]
    finally:
        ending = "ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s;"
        with contextlib.suppress(Exception):
            fort.superuser(ending, "defaultdb")
        fort.superuser(f"{body}$checked${checked}$checked$", "defaultdb")
    fort.refused("avnadmin", create)


def test_without_a_fixed_search_path_a_function_of_the_superusers_runs_the_callers(fort: Fort) -> None:
    function = "pgherd.create_publication_for_all_tables(text, text)"
    trap = "CREATE FUNCTION trap.format(text, text, text) RETURNS text LANGUAGE plpgsql AS"
    trap += " $$ BEGIN ALTER ROLE plain SUPERUSER; RETURN 'SELECT 1'; END $$"
    attack = ("SET search_path = trap, pg_catalog", "SELECT pgherd.create_publication_for_all_tables('p')")
    assert fort.tries("avnadmin", "CREATE SCHEMA trap", trap) == [None, None]
    is_superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = 'plain'"
    try:
        fort.tries("avnadmin", *attack, "DROP PUBLICATION p")
        assert fort.superuser(is_superuser) == "f"
        fort.superuser(f"ALTER FUNCTION {function} RESET search_path", "defaultdb")
        fort.tries("avnadmin", *attack)
        assert fort.superuser(is_superuser) == "t"
    finally:
        fort.superuser(
            f"ALTER FUNCTION {function} SET search_path = pg_catalog, pg_temp; ALTER ROLE plain NOSUPERUSER;"
            " DROP SCHEMA trap CASCADE; DROP PUBLICATION IF EXISTS p",
            "defaultdb",
        )


def test_without_its_rules_the_host_lets_the_superuser_in_without_tls(
    fort: Fort, rendered_anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fort.superuser("ALTER ROLE postgres PASSWORD 'leaked'")
    login = {"password": "leaked", "sslmode": "disable"}
    try:
        with pytest.raises(psycopg.OperationalError):
            fort.connect("postgres", **login)
        strict = hba.render_hba

        def weak(*given: Any, **named: Any) -> str:
            rules = strict(*given, **named).replace("hostssl", "host").splitlines()
            return "\n".join(rule for rule in rules if not rule.startswith("host all postgres")) + "\n"

        with monkeypatch.context() as patched:
            patched.setattr(hba, "render_hba", weak)
            rendered_anew()
            with fort.connect("postgres", **login) as connection:
                assert connection.execute("SHOW is_superuser").fetchone() == ("on",)
        rendered_anew()
        with pytest.raises(psycopg.OperationalError):
            fort.connect("postgres", **login)
    finally:
        fort.superuser("ALTER ROLE postgres PASSWORD NULL")


def test_with_a_longer_list_of_extensions_a_tenant_gets_one_that_reads_raw_pages(
    fort: Fort, rendered_anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fort.refused("avnadmin", "CREATE EXTENSION pageinspect")
    monkeypatch.setattr(extensions, "allow_list", lambda found, without: '"pageinspect"')
    rendered_anew()
    assert fort.tries("avnadmin", "CREATE EXTENSION pageinspect") == [None]
    fort.superuser("DROP EXTENSION pageinspect", "defaultdb")
    monkeypatch.undo()
