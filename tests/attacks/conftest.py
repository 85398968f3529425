"""One service for all attacks, and who attacks it: its admin, a user that the admin made, a user with REPLICATION.

Each test is called after its row of the checklist. It shows that the attack has no effect, not only an error.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd import unprivileged
from pgherd.agent.converge import Convergence
from pgherd.drivers import pgbouncer, postgres
from pgherd.spec import NodeSpec, Pool
from tests.plugins.host import PASSWORD, RunningHost, _ensure_log_user

#: What `plain` and `repl` have as their password.
SECRET = "not-so-secret-1"
ATTACKERS = ("avnadmin", "plain", "repl")


class Fort:
    """A service under attack."""

    def __init__(self, host: RunningHost, spec: NodeSpec) -> None:
        self.host, self.spec = host, spec

    def connect(self, user: str = "avnadmin", **more: Any) -> psycopg.Connection[Any]:
        """As one of the attackers, to defaultdb."""
        return self.host.connect(
            self.spec, **({"user": user, "password": PASSWORD if user == "avnadmin" else SECRET} | more)
        )

    def tries(self, user: str, *statements: str, database: str = "defaultdb") -> list[psycopg.Error | Any]:
        """What becomes of each statement: the error, or the rows (None: there are none)."""
        results: list[psycopg.Error | Any] = []
        with self.connect(user, dbname=database) as connection:
            for statement in statements:
                try:
                    cursor = connection.execute(statement.encode())
                    results.append(cursor.fetchall() if cursor.description else None)
                except psycopg.Error as error:
                    results.append(error)
        return results

    def refused(self, user: str, *statements: str, database: str = "defaultdb") -> list[psycopg.Error]:
        """Every statement must fail; their errors."""
        results = self.tries(user, *statements, database=database)
        went_through = [
            s for s, result in zip(statements, results, strict=True) if not isinstance(result, psycopg.Error)
        ]
        assert went_through == []
        return results

    def superuser(self, script: str, database: str = "postgres") -> str:
        """SQL of the platform's."""
        return postgres.psql(Convergence(self.host.agent.host, self.spec).cluster, script, database=database).strip()

    def as_service(self, *argv: str) -> unprivileged.Answer:
        """A program under the service's own OS user: what SQL that runs code would reach."""
        return unprivileged.run(self.host.account(self.spec), argv)

    @property
    def pgdata(self) -> Path:
        return self.host.directory(self.spec) / "data/pgdata"

    def powers(self) -> str:
        """All that makes a role powerful, to be the same before and after."""
        return self.superuser("""
            SELECT rolname, rolsuper, rolreplication, rolbypassrls, rolcanlogin FROM pg_roles
            WHERE rolsuper OR rolreplication OR rolbypassrls ORDER BY 1;
            SELECT r.rolname, m.rolname FROM pg_auth_members JOIN pg_roles r ON r.oid = roleid
            JOIN pg_roles m ON m.oid = member WHERE r.rolsuper OR r.rolreplication ORDER BY 1, 2;
        """)


@pytest.fixture(scope="session")
def attacked_host() -> Iterator[RunningHost]:
    home = Path(tempfile.mkdtemp(prefix="pgherd-attacked-", dir="/var/tmp"))
    home.chmod(0o755)
    _ensure_log_user()
    host = RunningHost(home)
    yield host
    host.close()


@pytest.fixture(scope="session")
def under_attack(attacked_host: RunningHost) -> Fort:
    return made(attacked_host)


def made(host: RunningHost) -> Fort:
    """A service with its attackers."""
    # With a pool, PgBouncer's door on the socket is open too.
    pools = [Pool("pool", "defaultdb", "transaction", 2)] if pgbouncer.program("") else []
    fort = Fort(host, host.running(pools=pools))
    fort.tries("avnadmin", f"CREATE ROLE plain LOGIN PASSWORD '{SECRET}'")
    fort.superuser(f"CREATE ROLE repl LOGIN REPLICATION PASSWORD '{SECRET}'")
    fort.tries("avnadmin", "GRANT USAGE, CREATE ON SCHEMA public TO plain, repl")
    return fort


@pytest.fixture
def fort(under_attack: Fort) -> Iterator[Fort]:
    """The service; afterwards the powers and the server's process are what they were."""
    powers, pid = under_attack.powers(), under_attack.host.postmaster(under_attack.spec)
    yield under_attack
    assert under_attack.powers() == powers
    assert under_attack.host.postmaster(under_attack.spec) == pid


@pytest.fixture(params=ATTACKERS)
def attacker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target() -> Iterator[Path]:
    """A file that everybody could write, in a directory that everybody can enter."""
    directory = Path(tempfile.mkdtemp(prefix="pgherd-target-", dir="/var/tmp"))
    directory.chmod(0o777)
    file = directory / "file"
    file.write_text("untouched")
    file.chmod(0o666)
    yield file
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    directory.rmdir()
