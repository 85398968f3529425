"""Fifty idle services run at once and come back after `down` and `up`, with starts limited to the cores."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.plugins.instance import Instance, running_instance, until


def _all_run(instance: Instance) -> bool:
    services = instance.client().list_dbaas_services()["dbaas-services"]
    return len(services) == 50 and all(service["state"] == "running" for service in services)


@pytest.mark.timeout(400)
def test_fifty_services_come_back() -> None:
    with running_instance() as instance:
        names = [f"f-{uuid.uuid4().hex[:10]}" for _ in range(50)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(instance.create, names))
        assert _all_run(instance)
        for name in names[::10]:
            instance.sql(name, "create table kept as select 1 as i")
        instance.run("down")
        assert not instance.processes("postgres")
        start = time.monotonic()
        instance.run("up")
        until(lambda: _all_run(instance), 60, "all fifty run again")
        took = time.monotonic() - start
        assert took < 60, f"fifty services took {took:.0f} s to come back"
        for name in names[::10]:
            assert instance.sql(name, "select i from kept") == [(1,)]
