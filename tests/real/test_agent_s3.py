"""A fork to a time and a proof from a repository in S3. All else that is done with repositories runs there by
`--repository s3`, which takes longer than every run of the tests should."""

from __future__ import annotations

import pytest

from tests.plugins.host import RunningHost
from tests.plugins.instance import Instance
from tests.plugins.objects import PATIENCE, Bucket
from tests.real.test_agent_backups import ready, remove
from tests.real.test_agent_forks import History
from tests.real.test_agent_proofs import begin, ended


def test_a_fork_to_a_time_and_a_proof(host: RunningHost, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    if host.bucket is not None:
        pytest.skip("with --repository s3 all others show it")
    monkeypatch.setattr(Instance, "patience", PATIENCE)
    history = History(host, bucket)
    ready(host, history.node)
    history.write(2)
    history.back_up()
    history.write(3)
    moment, rows = history.moments[3]
    asked = bucket.front.asked
    fork = history.fork(moment, source=history.node.node_id)
    host.until_in_force(fork)
    assert bucket.front.asked - asked < 100, "each of a thousand files is asked for by itself"
    history.node = begin(host, history.node)
    assert history.rows(fork) == rows
    found = ended(host, history.node)
    assert (found.problems, found.broken, found.impossible) == ([], [], "") and found.recovered_to
    host.change(fork, desired="absent")
    remove(host, history.node)
    assert not history.files.names()
