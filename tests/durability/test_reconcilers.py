"""What must stay true comes true again without a request: platform parameters, certificates, lost jobs."""

from __future__ import annotations

import os

import pytest

from pgherd.spec import PLATFORM
from tests.contract.processes import metadata, stopped
from tests.plugins.instance import Instance, until


@pytest.mark.timeout(150)
def test_older_services_are_rolled_to_the_platform_s_parameters(instance: Instance) -> None:
    name = instance.create()
    mine = f"service_id = (select id from service where name = '{name}' and deleted_at is null)"
    version = f"select spec ->> 'platform' from node where {mine}"
    metadata(instance, f"update node set spec = jsonb_set(spec, '{{platform}}', '0') where {mine}")
    until(lambda: metadata(instance, version) == str(PLATFORM), 60, "the spec has the platform's version again")
    ended = f"select string_agg(kind || ' ' || state, ',' order by created_at) from operation where {mine}"
    until(lambda: metadata(instance, ended) == "create success,update success", 30, "the roll ended in success")
    assert instance.sql(name, "select 1") == [(1,)]
    instance.delete(name)


@pytest.mark.timeout(150)
def test_a_certificate_that_is_due_is_renewed_without_cutting_anybody(instance: Instance) -> None:
    name = instance.create()
    mine = f"name = '{name}' and deleted_at is null"
    old = metadata(instance, f"select certificate from service where {mine}")
    # One of another CA is as good as one that is due: neither fits. The reconciler looks when its worker starts.
    other = metadata(instance, "select ca_certificate from organization limit 1")
    metadata(instance, f"update service set certificate = '{other}' where {mine}")
    with stopped(instance, "worker"):
        pass
    current = f"select certificate from service where {mine}"
    until(lambda: metadata(instance, current) not in (other, old), 60, "the certificate is a new one")
    until(lambda: instance.client().get_dbaas_service_pg(name=name)["state"] == "running", 20, "it runs")
    assert instance.sql(name, "select 1") == [(1,)]
    instance.delete(name)


@pytest.mark.timeout(120)
def test_an_operation_whose_job_was_lost_gets_a_new_one(instance: Instance) -> None:
    name = f"lost-{os.urandom(4).hex()}"
    with stopped(instance, "worker"):
        operation = instance.client().create_dbaas_service_pg(name=name, plan="hobbyist-2")
        assert operation["state"] == "pending"
        metadata(instance, f"delete from procrastinate_jobs where args ->> 'operation' = '{operation['id']}'")
    assert instance.finished(operation)["state"] == "success"
    instance.delete(name)
