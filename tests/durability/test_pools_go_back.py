"""A pool that no host can serve: the operation says why, and the service is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.instance import Instance, running_instance


@pytest.fixture(scope="module")
def poolless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance whose host has a PgBouncer that is too old."""
    directory: Path = tmp_path_factory.mktemp("old")
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)
    old = directory / "pgbouncer"
    old.write_text("#!/bin/sh\necho PgBouncer 1.18.0\n")
    old.chmod(0o755)
    with running_instance(pgbouncer=str(old)) as made:
        yield made


def test_a_refused_pool_leaves_nothing(poolless: Instance) -> None:
    name, client = poolless.create(), poolless.client()
    operation = client.create_dbaas_pg_connection_pool(service_name=name, name="p", database_name="defaultdb")
    done = poolless.finished(operation)
    assert (done["state"], done["reason"]) == ("failure", "conflict"), done
    assert "PgBouncer" in done["message"] and "1.18" in done["message"]
    shown = client.get_dbaas_service_pg(name=name)
    assert (shown["state"], shown["connection-pools"]) == ("running", [])
    done = poolless.finished(client.create_dbaas_postgres_user(service_name=name, username="afterwards"))
    assert done["state"] == "success", done
    poolless.delete(name)
