"""The worker or the agent dies while backups are proven: the operation ends once, and nothing of the proof is left."""

from __future__ import annotations

import pytest

from tests.contract.processes import metadata
from tests.durability.kills import arm, disarm, trace
from tests.plugins.instance import Instance, until

pytestmark = pytest.mark.repository

PLACES = (
    "agent job verify start end kill",
    "agent job verify finish begin kill",
    "agent job verify finish recorded kill",
    "agent job verify finish end kill",
    "worker verify before record kill",
)


@pytest.mark.timeout(600)
def test_verify_killed(fragile: Instance) -> None:
    trace(fragile)
    name = fragile.create()
    fragile.run("backup", "create", name)
    service = metadata(fragile, f"select id from service where name = '{name}'")
    ended = f"select count(*) from operation where service_id = '{service}' and kind = 'verify' and state = 'success'"
    kept = f"select count(*) from verification where service_id = '{service}' and state = 'sound'"
    for count, place in enumerate(PLACES, 1):
        metadata(fragile, f"delete from verification where service_id = '{service}'")
        arm(fragile, place)
        operation = fragile.call("POST", f"/pgherd/v1/service/{name}/verification").json()
        done = fragile.finished(operation, 90)
        assert disarm(fragile), f"{place} was not passed"
        assert done["state"] == "success", f"{place}: {done}"
        assert metadata(fragile, ended) == str(count)
        assert metadata(fragile, kept) == "1", f"{place}: what was found is lost"
        until(lambda: not list(fragile.home.glob("nodes/*/data/proof*")), 20, "nothing of the proof is left")
        # The watch of the disk names what it does not count.
        assert fragile.processes("data/proof", but="--exclude=") == [], place
    files = fragile.stored(name)
    files.flip(max(files.names("backup/main/2"), key=lambda one: len(files.read(one)) if "/bundle/" in one else 0))
    for place in PLACES[1:4]:
        arm(fragile, place)
        operation = fragile.call("POST", f"/pgherd/v1/service/{name}/verification").json()
        done = fragile.finished(operation, 90)
        assert disarm(fragile), f"{place} was not passed"
        assert done["state"] == "failure" and "is damaged" in done["message"], f"{place}: {done}"
    fragile.delete(name)
