"""What the driver asks of PostgreSQL and believes of its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.agent import report
from pgherd.drivers import postgres
from pgherd.errors import HostFault

VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"


def test_a_hostile_admin_name_stays_a_name() -> None:
    script = postgres.creating_admin('x"; DROP ROLE y; --\\', VERIFIER)
    assert 'ALTER ROLE "x""; DROP ROLE y; --\\"' in script


@pytest.mark.parametrize("name", ["postgres", "pg_monitor", ""])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(HostFault):
        postgres.creating_admin(name, VERIFIER)


@pytest.mark.parametrize("wrong", ["plain", "md5abc", VERIFIER + "'", VERIFIER + "\n"])
def test_only_a_verifier_is_taken_as_a_password(wrong: str) -> None:
    with pytest.raises(HostFault) as caught:
        postgres.creating_admin("avnadmin", wrong)
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("answer", ["", "1", "{}", "[]", '{"version": 3}', "\x00\xff", "{" * 10_000])
def test_a_wrong_answer_is_a_fault(answer: str) -> None:
    with pytest.raises(HostFault):
        postgres.parse_observation(answer)


def test_the_reason_is_the_servers_own_last_fatal_line() -> None:
    lines = [
        "2026-11-23 16:00:01.1  2026-11-23 16:00:01.100 UTC [7] FATAL:  could not create any TCP/IP sockets",
        "2026-11-23 16:00:01.2  2026-11-23 16:00:01.100 UTC [9] [user=eve,db=x,app=psql] FATAL:  no password",
        "2026-11-23 16:00:01.3  2026-11-23 16:00:01.100 UTC [7] LOG:  database system is shut down",
    ]
    assert report.last_words(lines, Path("/h")) == "FATAL: could not create any TCP/IP sockets"


def test_a_reason_shows_no_path_and_no_control_characters() -> None:
    shown = report.clean('cannot open "/h/nodes/1/data/pgdata/x"\x1b[31m\n' + "y" * 500, Path("/h"))
    assert "/h" not in shown and "\x1b" not in shown and len(shown) <= 300
