"""The worker dies while it takes an update back that a host cannot bring into force."""

from __future__ import annotations

import pytest

from tests.durability.kills import arm, disarm
from tests.durability.test_go_back import put_at_once, slots, states, with_nine_slots
from tests.plugins.instance import Instance


@pytest.mark.timeout(400)
def test_killed_while_it_goes_back(fragile: Instance) -> None:
    name, twice = with_nine_slots(fragile), fragile.failpoints / "twice"
    for turn, place in enumerate(("worker update go back", "worker update go back done", "")):
        allowed, timeout = [f"192.0.2.{turn}/32"], {"wal": {"wal_sender_timeout": 9000 + turn}}
        if place:
            arm(fragile, f"{place} kill")
        else:
            twice.touch()
        try:
            ended = put_at_once(fragile, name, slots(8), {"ip-filter": allowed}, {"pg-settings": timeout})
        finally:
            twice.unlink(missing_ok=True)
            passed = disarm(fragile)
        assert passed, place
        assert states(ended) == ["failure", "success", "success"], ended
        assert "replication slots" in ended[0]["message"]
        shown = fragile.client().get_dbaas_service_pg(name=name)
        assert (shown["ip-filter"], shown["pg-settings"]) == (allowed, timeout)
        assert fragile.sql(name, "show max_replication_slots") == [("20",)]
    fragile.delete(name)
