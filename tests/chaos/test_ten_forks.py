"""Forks to ten random times just before a table was dropped: each has exactly the rows that were committed by then."""

from __future__ import annotations

import random

import pytest

from tests.e2e.test_forks import back_up, fork, rows, write
from tests.plugins.instance import running_instance

pytestmark = pytest.mark.repository


@pytest.mark.timeout(1800)
def test_ten_random_times() -> None:
    draw = random.SystemRandom()
    with running_instance(archive_timeout_seconds="2") as instance:
        source = instance.create(plan="startup-4")  # the smallest plan keeps one backup only
        instance.sql(source, "create table ledger (i int generated always as identity)")
        back_up(instance, source)
        moments = write(instance, source, 60)
        back_up(instance, source)
        moments += write(instance, source, 60)
        instance.sql(source, "drop table ledger")
        for moment, last in [moments[-1], *draw.sample(moments[:-1], 9)]:
            done = fork(instance, source, "then", recovery_backup_time=moment.isoformat())
            assert done["state"] == "success", done
            assert rows(instance, "then") == list(range(1, last + 1)), moment
            instance.delete("then")
