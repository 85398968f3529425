"""Logical replication as users do it: pg_recvlogical, and a subscription of one service to another of the same host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.plugins.instance import ROOTED, Instance, until

RECEIVE = "/usr/lib/postgresql/15/bin/pg_recvlogical"


@pytest.fixture(scope="module")
def publisher(instance: Instance) -> str:
    """A service with a table, and with a user `copier` that may replicate."""
    name = instance.create()
    made = instance.client().create_dbaas_postgres_user(service_name=name, username="copier", allow_replication=True)
    assert instance.finished(made)["state"] == "success"
    instance.sql(name, "create table items (i int primary key); grant select on items to copier")
    return name


def _password(instance: Instance, service: str, user: str) -> str:
    found = instance.client().reveal_dbaas_postgres_user_password(service_name=service, username=user)
    return str(found["password"])


def test_pg_recvlogical_receives_until_it_may_not_any_more(instance: Instance, publisher: str, tmp_path: Path) -> None:
    dsn = instance.dsn(publisher, user="copier", password=_password(instance, publisher, "copier"))

    def receive(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [RECEIVE, "--dbname", dsn, "--slot", "received", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin"})

    assert receive("--create-slot", "--plugin", "test_decoding").returncode == 0
    instance.sql(publisher, "insert into items values (1), (2)")
    ((end,),) = instance.sql(publisher, "select pg_current_wal_insert_lsn()::text")
    got = tmp_path / "got"
    done = receive("--start", "--no-loop", "--endpos", end, "--file", str(got))
    assert done.returncode == 0, done.stderr
    assert "table public.items: INSERT: i[integer]:2" in got.read_text()
    assert receive("--drop-slot").returncode == 0
    client = instance.client()
    client.update_dbaas_postgres_allow_replication(service_name=publisher, username="copier", allow_replication=False)
    refused = receive("--create-slot", "--plugin", "test_decoding")
    assert refused.returncode != 0 and "must be superuser or replication role" in refused.stderr
    client.update_dbaas_postgres_allow_replication(service_name=publisher, username="copier", allow_replication=True)


def test_a_service_subscribes_to_another_whose_filter_lets_it_in(instance: Instance, publisher: str) -> None:
    client, subscriber = instance.client(), instance.create()
    instance.sql(publisher, "create publication p for table items")
    copier = _password(instance, publisher, "copier")
    instance.sql(
        publisher, "select pg_create_logical_replication_slot('s', 'pgoutput')", user="copier", password=copier
    )
    instance.sql(subscriber, "create table items (i int primary key)")
    params = client.get_dbaas_service_pg(name=publisher)["uri-params"]
    where = f"host={params['host']} port={params['port']} dbname=defaultdb user=copier password={copier}"
    subscribe = f"select pgherd.create_subscription('sub', '{where}', 'p', 's')"
    if ROOTED:
        with pytest.raises(psycopg.OperationalError, match="could not connect to the publisher"):
            instance.sql(subscriber, subscribe)
    opened = client.update_dbaas_service_pg(name=publisher, ip_filter=[f"{params['host']}/32"])
    assert instance.finished(opened)["state"] == "success"
    instance.sql(subscriber, subscribe)
    ((owner,),) = instance.sql(subscriber, "select pg_get_userbyid(subowner)::text from pg_subscription")
    assert owner == "avnadmin"
    instance.sql(publisher, "insert into items select generate_series(100, 199)")
    ((sent,),) = instance.sql(publisher, "select count(*) from items")
    until(lambda: instance.sql(subscriber, "select count(*) from items") == [(sent,)], 60, "all rows have arrived")
    instance.sql(subscriber, "drop subscription sub")
    assert instance.sql(publisher, "select count(*) from pg_replication_slots where slot_name = 's'") == [(0,)]
    instance.delete(subscriber)
    instance.delete(publisher)
