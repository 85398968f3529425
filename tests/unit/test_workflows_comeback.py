"""A job that is given back while a status comes is woken: at that time the status itself could wake nobody."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from procrastinate.jobs import Job

from pgherd.workflows.run import GiveBack
from pgherd.workflows.wakeups import Wakeups
from pgherd.workflows.worker import _Comeback, _settle_own_jobs

SERVICE = "5f0f9f6e-5b0e-4b3a-9a3a-1f6f1c9f7c11"


@pytest.mark.parametrize("meanwhile", [True, False])
def test_a_status_that_comes_while_a_job_is_given_back(meanwhile: bool) -> None:
    said: list[str] = []
    wakeups, comeback = Wakeups(""), _Comeback()
    job = Job(id=7, status="doing", queue="q", lock=SERVICE, queueing_lock=None, task_name="t", worker_id=1)

    async def give_back(query: str, **values: Any) -> list[dict[str, Any]]:
        assert (values["job"], values["worker"]) == (7, 1)
        said.append("given back")
        if meanwhile:
            wakeups._count(SERVICE)
        return [{}]

    async def wake(query: str, **values: Any) -> None:
        said.append(f"{query} {values}")

    connector = SimpleNamespace(execute_query_all_async=give_back, execute_query_async=wake)
    queue = SimpleNamespace(job_manager=SimpleNamespace(), connector=connector)
    _settle_own_jobs(queue, wakeups, comeback)  # type: ignore[arg-type]
    reason = GiveBack("waits", SERVICE, wakeups.mark(SERVICE))
    decision = comeback.get_retry_decision(exception=reason, job=job)
    assert decision is not None
    asyncio.run(queue.job_manager.retry_job(job=job, retry_at=decision.retry_at))
    assert said[0] == "given back" and len(said) == (2 if meanwhile else 1)
    assert SERVICE in said[-1] or not meanwhile
    assert comeback.looked == {}
