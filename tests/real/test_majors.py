"""The other majors, from their prefixes: what the service is made of works on each of them as on the default one.

All tests of hosts and attacks run against another major with PGHERD_TEST_MAJOR.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgherd import sealing
from pgherd.drivers import postgres
from pgherd.spec import NodeSpec, Pool, Task
from tests.plugins.host import RunningHost, verifier

MAJORS = ("17", "18")


@pytest.fixture(scope="module", params=MAJORS)
def node(request: pytest.FixtureRequest, host: RunningHost) -> Iterator[NodeSpec]:
    """A node of this major with a user `app` and a pool."""
    assert request.param in host.agent.programs, "sh install/postgresql.sh 17 18"
    public = sealing.public_key(host.agent.host.private_key)
    task = Task("t", "create-user", "app", verifier=sealing.seal(public, verifier("secret-1")), owner="avnadmin")
    yield host.running(version=request.param, task=task, pools=[Pool("main", "defaultdb", "transaction", 5)])


def test_it_serves_over_tls_and_through_pools(host: RunningHost, node: NodeSpec) -> None:
    for more in ({}, {"user": "app", "password": "secret-1"}):
        for where in ({}, {"port": node.port + 1, "dbname": "main"}):
            with host.connect(node, **more, **where) as connection:
                shown = connection.execute("SHOW server_version").fetchone()
                assert shown is not None and shown[0].startswith(f"{node.version}.")
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        host.connect(node, sslmode="disable")
    status = host.link.statuses[node.node_id]
    assert status.version.startswith(f"{node.version}.") and status.task is not None and status.task.state == "done"
    assert host.link.facts is not None and host.link.facts.versions[node.version] == status.version


def test_its_locale_and_icu_are_there(host: RunningHost, node: NodeSpec) -> None:
    with host.connect(node) as connection:
        shown = connection.execute("SELECT datcollate FROM pg_database WHERE datname = 'defaultdb'").fetchone()
        assert shown == (postgres.locale(),)
        assert connection.execute("SELECT 'ä' < 'z' COLLATE \"de-x-icu\", 'ä' < 'z'").fetchone() == (True, True)


def test_vectors_are_searched(host: RunningHost, node: NodeSpec) -> None:
    with host.connect(node) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE items (id int, at vector(2))")
        connection.execute("INSERT INTO items VALUES (1, '[1,2]'), (2, '[5,6]'), (3, '[1,3]')")
        connection.execute("CREATE INDEX ON items USING hnsw (at vector_l2_ops)")
        nearest = connection.execute("SELECT id FROM items ORDER BY at <-> '[5,5]' LIMIT 1").fetchone()
        assert nearest == (2,)


def test_its_walls_stand(host: RunningHost, node: NodeSpec) -> None:
    with host.connect(node) as connection:
        connection.execute("CREATE EXTENSION hstore")
        for attack in (
            "CREATE EXTENSION file_fdw",
            "COPY (SELECT 1) TO PROGRAM 'id'",
            "GRANT pg_execute_server_program TO avnadmin",
            "ALTER SYSTEM SET work_mem = '1GB'",
            "CREATE SUBSCRIPTION s CONNECTION 'host=localhost' PUBLICATION p",
            "SET pgaudit.log = 'none'",
            "ALTER ROLE avnadmin SUPERUSER",
        ):
            with pytest.raises(psycopg.Error) as refusal:
                connection.execute(attack)
            assert isinstance(refusal.value, psycopg.errors.InsufficientPrivilege | psycopg.errors.FeatureNotSupported)


def test_it_runs_with_libraries_of_its_own(host: RunningHost, node: NodeSpec) -> None:
    """Should the prefix lack one, the system's of another version would come in its place."""
    program = host.agent.programs[node.version]
    prefix = program.bin.parents[4]
    if prefix == Path("/"):
        pytest.skip("the system has this major itself")
    maps = Path(f"/proc/{host.postmaster(node)}/maps").read_text().split()
    libraries = {word for word in maps if word.startswith("/") and ".so" in word}
    assert libraries and {path for path in libraries if not path.startswith(f"{prefix}/")} == set()
