"""Repositories and backups of a node by the real agent: real PostgreSQL, real pgBackRest."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
import pytest

from pgherd import sealing
from pgherd.spec import Job, NodeSpec, NodeStatus, Repository
from tests.plugins.host import RunningHost


def repository(host: RunningHost, **changes: Any) -> Repository:
    public = sealing.public_key(host.agent.host.private_key)
    made = Repository(secrets.token_hex(8), "directory", sealing.seal(public, "opens-the-repository"), 2)
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def node(host: RunningHost) -> NodeSpec:
    kept = repository(host)
    return host.running(repository=kept, service_id=kept.service_id)


def back_up(host: RunningHost, node: NodeSpec, **how: Any) -> tuple[NodeSpec, NodeStatus]:
    job = Job(secrets.token_hex(8), "backup", **how)
    node = host.change(node, jobs=[job])
    status = host.until(node, lambda s: any(j.id == job.id and j.state in ("done", "failed") for j in s.jobs), 60)
    assert status.jobs[0].state == "done", status.jobs
    return host.change(node, jobs=[]), status


def test_backups(host: RunningHost, node: NodeSpec) -> None:
    host.until(node, lambda s: s.repository is not None and s.repository.ready)
    for _ in range(3):
        host.sql(
            node,
            "create table if not exists public.t (i int); insert into public.t select generate_series(1, 999);",
        )
        node, status = back_up(host, node, full=True)
        print(status.jobs, status.repository)
    node, status = back_up(host, node)
    print(status.repository)
