"""`pgherd platform restore` dies at every place where it has changed something."""

from __future__ import annotations

import psycopg
import pytest

from tests.plugins.instance import running_instance, until

pytestmark = pytest.mark.repository

RESTORE = ("restored", "recovered", "stopped", "noted", "put aside", "swapped")


@pytest.mark.timeout(300)
def test_a_restore_of_the_metadata_may_be_killed_anywhere() -> None:
    """Run again, or after `up` alone, all is there; services never notice."""
    with running_instance(failpoints=True) as fragile:
        name = fragile.create()
        fragile.run("platform", "backup")
        with psycopg.connect(fragile.dsn(name), autocommit=True) as session:
            for place in RESTORE:
                (fragile.failpoints / "arm").write_text(f"platform restore {place} kill")
                killed = fragile.run("platform", "restore", "--yes", check=False)
                assert killed.returncode == -9, (place, killed)
                if place in ("noted", "put aside", "swapped"):
                    fragile.up()
                    services = fragile.client().list_dbaas_services()["dbaas-services"]
                    assert [one["name"] for one in services] == [name], place
            fragile.run("platform", "restore", "--yes")
            fragile.up()
            done = fragile.finished(fragile.client().update_dbaas_service_pg(name=name, work_mem=7))
            assert done["state"] == "success"
            until(lambda: session.execute("show work_mem").fetchone() == ("7MB",), 10, "the old session follows")
        left = {path.name for path in (fragile.home / "metadata").iterdir()}
        assert not left & {"restoring", "swapping", "restoring-run", "restoring.log"}, left
