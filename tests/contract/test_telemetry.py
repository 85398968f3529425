"""Logs, metrics and the credentials for Prometheus through the official SDK, from real servers."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from exoscale.api.exceptions import ExoscaleAPIClientException
from exoscale.api.v2 import Client

from tests.contract.conftest import Organization
from tests.contract.processes import metadata, stopped
from tests.contract.test_sdk import refusal
from tests.plugins.instance import Instance, until

#: What `exo dbaas logs` reads: Go's layout with a literal Z.
GO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
#: The names that a script over the hosted service's metrics reads, each with its last value.
HOSTED = (
    "disk_usage", "load_average", "mem_usage", "diskio_writes", "mem_available", "cpu_usage", "diskio_read", "net_send",
    "net_receive",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(instance: Instance, checked: None) -> Iterator[str]:
    """A service with a pool, so that PgBouncer writes too."""
    name = instance.create()
    pool = {"name": "main", "database_name": "defaultdb", "size": 5}
    done = instance.finished(instance.client().create_dbaas_pg_connection_pool(service_name=name, **pool))
    assert done["state"] == "success", done
    port = instance.client().get_dbaas_service_pg(name=name)["prometheus-uri"]["port"] - 2
    psycopg.connect(instance.dsn(name, port=str(port), dbname="main")).close()
    yield name
    instance.client().delete_dbaas_service(name=name)


def say(instance: Instance, service: str, *words: str) -> None:
    """Let PostgreSQL log something."""
    with psycopg.connect(instance.dsn(service), autocommit=True) as connection:
        for word in words:
            with pytest.raises(psycopg.errors.RaiseException):
                connection.execute(f"DO $$ BEGIN RAISE EXCEPTION '{word}'; END $$".encode())


def messages(answer: dict[str, Any], word: str) -> list[str]:
    return [
        line["message"] for line in answer["logs"] if word in line["message"] and "STATEMENT" not in line["message"]
    ]


def test_the_newest_lines_come_first_and_an_empty_body_will_do(
    instance: Instance, client: Client, service: str
) -> None:
    word = uuid.uuid4().hex
    say(instance, service, f"{word} 1", f"{word} 2")
    answer = until(lambda: _with(client, service, word, 2), 10, "both lines are there")
    assert [message[-1] for message in messages(answer, word)] == ["2", "1"]
    assert len(answer["logs"]) <= 100
    assert {line["unit"] for line in answer["logs"]} == {"postgresql", "pgbouncer"}
    assert {line["node"] for line in answer["logs"]} == {f"{service}-1"}
    times = [line["time"] for line in answer["logs"]]
    assert all(GO_TIME.fullmatch(one) for one in times) and times == sorted(times, reverse=True)
    assert abs(time.time() - time.mktime(time.strptime(times[0][:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone) < 3600


def _with(client: Client, service: str, word: str, count: int) -> dict[str, Any] | None:
    answer: dict[str, Any] = client.get_dbaas_service_logs(service_name=service)
    return answer if len(messages(answer, word)) == count else None


def test_pages_meet_in_both_directions(instance: Instance, client: Client, service: str) -> None:
    word = uuid.uuid4().hex
    say(instance, service, *(f"{word} {n:02}" for n in range(10)))
    until(lambda: _with(client, service, word, 10), 10, "all lines are there")
    page = client.get_dbaas_service_logs(service_name=service, limit=3)
    newest, backwards = page["first-log-offset"], list(page["logs"])
    while page["logs"]:
        page = client.get_dbaas_service_logs(service_name=service, limit=7, offset=page["offset"])
        backwards += page["logs"]
    forwards: list[dict[str, Any]] = []
    page = client.get_dbaas_service_logs(service_name=service, limit=5, sort_order="asc")
    say(instance, service, f"{word} later")
    while page["logs"]:
        forwards += page["logs"]
        page = client.get_dbaas_service_logs(service_name=service, limit=5, sort_order="asc", offset=page["offset"])
    assert forwards[: len(backwards)] == backwards[::-1]
    since = client.get_dbaas_service_logs(service_name=service, sort_order="asc", offset=newest)["logs"]
    assert since == forwards[len(backwards) :] and messages({"logs": since}, word)


def _offset(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


_WRONG = (
    '{"a":{"p":["\\u0000",0]}}', '{"a":{"\\u0000":["",0]}}', '{"\\u0000":{"p":["",0]}}', '{"\\ud800":{"p":["",0]}}',
    '{"a":{"p":["",0,' + "[" * 5900,
)  # fmt: skip


@pytest.mark.parametrize("offset", ["no", "e30x!", "eyJhIjoxfQ", "A" * 9000, "W10", *map(_offset, _WRONG)])
def test_an_offset_that_was_not_given_is_refused(client: Client, service: str, offset: str) -> None:
    said = refusal(client.get_dbaas_service_logs, 400, service_name=service, offset=offset)
    assert said == "offset: must be an offset or first-log-offset of an earlier answer."


def test_bounds_and_unknown_services_are_refused(client: Client, service: str, organization: Organization) -> None:
    for wrong in ({"limit": 0}, {"limit": 501}, {"sort_order": "up"}):
        refusal(client.get_dbaas_service_logs, 400, service_name=service, **wrong)
    refusal(client.get_dbaas_service_metrics, 400, service_name=service, period="decade")
    for call in (client.get_dbaas_service_logs, client.get_dbaas_service_metrics):
        assert refusal(call, 404, service_name="c-nobody") == "Service does not exist"


def test_what_concerns_a_service_is_its_organizations_alone(
    instance: Instance, service: str, organization: Organization
) -> None:
    for method, path in (
        ("POST", f"/v2/dbaas-service-logs/{service}"),
        ("POST", f"/v2/dbaas-service-metrics/{service}"),
        ("GET", f"/pgherd/v1/service/{service}/prometheus"),
    ):
        answer = instance.call(method, path, key=organization.admin)
        assert (answer.status_code, answer.json()) == (404, {"message": "Service does not exist"})


def test_a_key_that_only_reads_sees_logs_and_metrics_and_no_password(instance: Instance, service: str) -> None:
    body = {"name": "reader", "role": "read-only"}
    made = instance.call("POST", "/pgherd/v1/api-key", body).json()
    key = (made["key"], made["secret"])
    assert instance.call("POST", f"/v2/dbaas-service-logs/{service}", key=key).json()["logs"]
    assert instance.call("POST", f"/v2/dbaas-service-metrics/{service}", key=key).json()["metrics"]
    assert instance.call("GET", f"/pgherd/v1/service/{service}/prometheus", key=key).status_code == 403


def test_no_password_and_no_noise_of_the_platform_is_in_the_logs(
    instance: Instance, client: Client, names: Callable[[], str]
) -> None:
    """Even when the tenant lets PostgreSQL log every statement."""
    name, secret = instance.create(names()), f"pw-{uuid.uuid4().hex}"
    done = instance.finished(client.update_dbaas_service_pg(name=name, pg_settings={"log_min_duration_statement": 0}))
    assert done["state"] == "success", done
    done = instance.finished(client.create_dbaas_postgres_user(service_name=name, username="app"))
    assert done["state"] == "success", done
    reset = client.reset_dbaas_postgres_user_password
    done = instance.finished(reset(service_name=name, username="app", password=secret))
    assert done["state"] == "success", done
    instance.sql(name, "SELECT 'mine'")

    def shown() -> str:
        logs = client.get_dbaas_service_logs(service_name=name, limit=500)["logs"]
        text = "\n".join(line["message"] for line in logs)
        return text if "SELECT 'mine'" in text else ""

    text = until(shown, 10, "the tenant's own statement is logged")
    prometheus = instance.call("GET", f"/pgherd/v1/service/{name}/prometheus").json()
    until(lambda: "pg_up 1" in scrape(instance, prometheus).text, 30, "the exporter answers")
    text += shown()
    assert secret not in text and "SCRAM-SHA-256" not in text and "pg_authid" not in text
    assert "pgherd_monitor" not in text and "pg_stat_" not in text and str(instance.home) not in text


#: What a service that works has more than nothing of, a moment after it began to.
_MOVED = (
    "cpu_usage", "disk_usage", "mem_usage", "mem_available", "mem_bytes", "disk_bytes", "connections",
    "connections_idle_in_transaction", "oldest_transaction", "transactions", "rollbacks", "cache_hit_ratio",
    "temp_bytes", "rows_read", "rows_written", "wal_bytes", "pool_clients",
)  # fmt: skip
#: What it also has, be it 0, and what a service without standbys and slots has nothing of.
_KNOWN = ("load_average", "diskio_read", "diskio_read_bytes", "connections_active", "deadlocks", "pool_waiting")
_UNKNOWN = ("replication_lag", "wal_retained")
_WRITES, _NETWORK = ("diskio_writes", "diskio_write_bytes"), ("net_receive", "net_send")


@contextlib.contextmanager
def _at_work(dsn: str) -> Iterator[None]:
    """Somebody writes, sorts on disk, reads and fails, over and over."""
    done = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE work (n int, t text)")
            connection.execute("SET work_mem = '64kB'")
            while not done.wait(0.2):
                connection.execute("INSERT INTO work SELECT n, repeat(md5(n::text), 9) FROM generate_series(1, 500) n")
                connection.execute("SELECT t FROM work ORDER BY md5(t), n LIMIT 500 OFFSET 400").fetchall()
                with contextlib.suppress(psycopg.errors.DivisionByZero):
                    connection.execute("SELECT 1 / 0 FROM work")
            connection.execute("DROP TABLE work")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join(20)


def test_metrics_have_the_hosted_names_and_tell_of_real_work(instance: Instance, client: Client, service: str) -> None:
    found: dict[str, dict[str, float]] = {}
    on_disk = subprocess.run(["stat", "-f", "-c", "%T", str(instance.home)], capture_output=True, text=True, check=True)
    moved = {*_MOVED, *(() if on_disk.stdout.strip() == "tmpfs" else _WRITES)}
    spec, dsn = instance.spec(service), instance.dsn(service)
    pool = str(client.get_dbaas_service_pg(name=service)["prometheus-uri"]["port"] - 2)

    def still() -> set[str]:
        metrics = client.get_dbaas_service_metrics(service_name=service)["metrics"]
        found.update({name: dict(metric["data"]["rows"]) for name, metric in metrics.items()})
        return {name for name in moved if max(found[name].values(), default=0) <= 0}

    with _at_work(dsn), psycopg.connect(dsn) as idle, psycopg.connect(instance.dsn(service, port=pool, dbname="main")):
        began = time.monotonic()
        idle.execute("SELECT 1")
        until(lambda: not still(), 120, "all that moves has moved", longest_pause=1)
        lasted = time.monotonic() - began
    assert set(HOSTED) <= set(found) == {*_MOVED, *_KNOWN, *_UNKNOWN, *_WRITES, *_NETWORK}
    for name in {*moved, *_KNOWN}:
        assert found[name] and all(GO_TIME.fullmatch(at) and n >= 0 for at, n in found[name].items()), name
    assert [found[name] for name in _UNKNOWN] == [{}, {}]
    assert found["net_send"].keys() == found["net_receive"].keys()  # none without root or nftables
    assert not found["net_send"] or min(max(found[name].values()) for name in _NETWORK) > 1000

    def same(name: str, other: str, factor: float, most: float) -> None:
        wrong = [
            (a, b)
            for a, b in zip(found[name].values(), found[other].values(), strict=True)
            if abs(a - b * factor) > most
        ]
        assert not wrong, (name, other, wrong)

    same("diskio_writes", "diskio_write_bytes", 1 / 8192, 0.01)
    same("diskio_read", "diskio_read_bytes", 1 / 8192, 0.01)
    same("disk_usage", "disk_bytes", 100 / spec["disk_bytes"], 0.01)
    same("mem_usage", "mem_bytes", 100 / spec["memory_bytes"], 0.01)
    assert all(abs(found["mem_usage"][at] + free - 100) < 0.01 for at, free in found["mem_available"].items())
    assert max(found["connections"].values()) >= 2 and max(found["cache_hit_ratio"].values()) <= 100
    assert max(found["connections_idle_in_transaction"].values()) == max(found["pool_clients"].values()) == 1
    assert max(found["oldest_transaction"].values()) < lasted + 1
    assert max(found["rows_written"].values()) > 10 and 1 << 20 < max(found["disk_bytes"].values()) < spec["disk_bytes"]
    shown = client.get_dbaas_service_metrics(service_name=service)["metrics"]["mem_usage"]
    assert shown["hints"] == {"title": "Memory usage %"}
    columns = [{"label": "time", "type": "date"}, {"label": f"{service}-1", "type": "number"}]
    assert shown["data"]["cols"] == columns and 0 < shown["data"]["rows"][-1][1] < 50
    for period in ("day", "week", "month", "year"):
        found = client.get_dbaas_service_metrics(service_name=service, period=period)["metrics"]
        assert found["mem_usage"]["data"]["rows"][-1][1] > 0


def scrape(instance: Instance, found: dict[str, Any], **other: str) -> requests.Response:
    """As Prometheus does it: TLS by the organization's CA, basic authentication."""
    ca = instance.home / "scrape-ca.pem"
    ca.write_text(instance.client().get_dbaas_ca_certificate()["certificate"])
    with requests.Session() as session:
        session.trust_env = False
        url = f"{found['scheme']}://{found['host']}:{found['port']}{found['path']}"
        auth = (other.get("username", found["username"]), other.get("password", found["password"]))
        try:
            return session.get(url, auth=auth, verify=str(ca), timeout=20)
        except requests.ConnectionError:
            answer = requests.Response()
            answer._content = b""
            return answer


def _scraped(instance: Instance, found: dict[str, Any], word: str) -> str:
    text: str = scrape(instance, found).text
    return text if word in text else ""


def _linted(text: str) -> list[str]:
    """What promtool says of the metrics that are ours, or that it cannot read them at all."""
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    lines = checked.stderr.splitlines()
    return [line for line in lines if re.match(r"(pgherd|pgbouncer)_", line) or "error while linting" in line]


def test_prometheus_reads_the_service_and_nobody_else_does(instance: Instance, client: Client, service: str) -> None:
    found = instance.call("GET", f"/pgherd/v1/service/{service}/prometheus").json()
    uri = client.get_dbaas_service_pg(name=service)["prometheus-uri"]
    assert uri == {"host": found["host"], "port": found["port"]}
    until(lambda: "pg_up 1" in scrape(instance, found).text, 30, "the exporter answers")
    text = until(
        lambda: _scraped(instance, found, "\npgbouncer_pools_server_idle_connections{"), 120, "PgBouncer is told of"
    )
    for line in (
        "pg_exporter_last_scrape_error 0", 'pg_stat_database_xact_commit{datid="', "pg_settings_max_connections{",
        "pg_stat_activity_count{", "pg_database_size_bytes{", "pgbouncer_up{",
        "pgherd_service_memory_limit_bytes{",
    ):  # fmt: skip
        assert f"\n{line}" in f"\n{text}", line
    assert _linted(text) == []
    assert scrape(instance, found, password="wrong").status_code == 401
    assert scrape(instance, found, username="admin").status_code == 401
    newest = max(client.get_dbaas_service_type(service_type_name="pg")["available-versions"], key=int)
    other = instance.create(version=newest)
    elsewhere = instance.call("GET", f"/pgherd/v1/service/{other}/prometheus").json()
    assert elsewhere["password"] != found["password"]
    until(lambda: "pg_up 1" in scrape(instance, elsewhere).text, 30, "the other's exporter answers")
    theirs = scrape(instance, elsewhere).text
    assert _linted(theirs) == [] and f'short_version="{newest}.' in theirs
    for name in ("pg_stat_bgwriter_buffers_clean_total", "pg_postmaster_start_time_seconds", "pg_replication_lag"):
        assert f"\n{name}{{" in theirs and f"\n{name}{{" in text, name
    assert scrape(instance, elsewhere, password=found["password"]).status_code == 401
    instance.delete(other)


def test_a_revealed_password_leaves_an_event(instance: Instance, service: str) -> None:
    instance.call("GET", f"/pgherd/v1/service/{service}/prometheus")
    newest = instance.call("GET", "/pgherd/v1/event?limit=20").json()["events"]
    found = [event for event in newest if event["command"] == "reveal-prometheus-credentials"]
    assert found and (found[0]["subject"], found[0]["result"]) == (service, "accepted")
    client = instance.client()
    client.get_dbaas_service_logs(service_name=service)
    newest = instance.call("GET", "/pgherd/v1/event?limit=20").json()["events"]
    assert not [event for event in newest if event["command"] == "get-dbaas-service-logs"]


def test_a_host_that_does_not_answer_is_told_of(instance: Instance, client: Client, service: str) -> None:
    """With a refusal that no client repeats by itself."""
    with stopped(instance, "agent"):
        said = refusal(client.get_dbaas_service_logs, 409, service_name=service)
        assert said.startswith("The service's host does not answer now")
        assert client.get_dbaas_service_metrics(service_name=service)["metrics"]

    def answered() -> bool:
        with contextlib.suppress(ExoscaleAPIClientException):
            return bool(client.get_dbaas_service_logs(service_name=service)["logs"])
        return False

    until(answered, 60, "it answers again")


def test_the_command_line_shows_all_of_it(instance: Instance, service: str, tmp_path: Path) -> None:
    word = uuid.uuid4().hex
    say(instance, service, f"{word} 1", f"{word} 2")
    follower = subprocess.Popen(
        [str(instance.program), "service", "logs", service, "--follow", "-o", "json"], env=instance.env, text=True,
        stdout=subprocess.PIPE, bufsize=1,
    )  # fmt: skip
    assert follower.stdout is not None
    try:
        seen: list[str] = []
        for line in follower.stdout:
            seen.append(json.loads(line)["message"])
            if f"{word} 2" in seen[-1]:
                say(instance, service, f"{word} 3")
            if f"{word} 3" in seen[-1]:
                break
        assert [m[-1] for m in seen if word in m and "STATEMENT" not in m] == ["1", "2", "3"]
    finally:
        follower.terminate()
        follower.wait(10)
    shown = instance.run("service", "logs", service, "--limit", "20").stdout
    assert f"{service}-1 postgresql: " in shown and f"{word} 3" in shown
    oldest = instance.run("service", "logs", service, "--limit", "1", "--order", "asc").stdout
    assert len(oldest.splitlines()) == 1 and word not in oldest
    shown = instance.run("service", "metrics", service).stdout
    assert shown.splitlines()[0].split() == ["METRIC", "LAST", "LEAST", "MOST", "COURSE"] and "Memory usage %" in shown
    printed = tmp_path / "prometheus.yml"
    authority = tmp_path / "ca.pem"
    printed.write_text(instance.run("service", "prometheus", service, "--ca-file", str(authority)).stdout)
    checked = subprocess.run(["promtool", "check", "config", str(printed)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_samples_get_coarser_and_take_no_more_room(instance: Instance, client: Client) -> None:
    """The steps of two hours are made of samples as a host sends them, and made again they change nothing."""
    name = instance.create()
    node = metadata(instance, f"select n.id from node n join service s on s.id = n.service_id where s.name = '{name}'")
    made = f"""
      insert into sample (node_id, step, slot, at, measured)
      select '{node}', 30, sample_slot(at, 30), at, array_fill(extract(epoch from at)::bigint % 300, array[26])::real[]
        from generate_series(to_timestamp(floor(extract(epoch from now()) / 1800) * 1800 - 5400), now(), '30 s') at
      on conflict (node_id, step, slot) do update set at = excluded.at, measured = excluded.measured"""
    metadata(instance, made)
    for _ in range(2):
        for step, periods in ((300, 24), (1800, 8)):
            metadata(instance, f"select roll_up_samples({step}, {periods})")
    counted = "select count(*), min(measured[1]), max(measured[26]) from sample where node_id = '{}' and step = {}"
    count, least, most = metadata(instance, counted.format(node, 300)).split("|")
    assert 16 <= int(count) <= 30 and (float(least), float(most)) == (135.0, 135.0)
    count, least, most = metadata(instance, counted.format(node, 1800)).split("|")
    assert int(count) >= 2 and (float(least), float(most)) == (135.0, 135.0)
    day = client.get_dbaas_service_metrics(service_name=name, period="day")["metrics"]["load_average"]["data"]["rows"]
    assert day[0][1] == 135.0 and len(day) > 16
    fill = f"""
      insert into sample (node_id, step, slot, at, measured)
      select '{node}', k.step, n, now() - make_interval(secs => k.step * n), array_fill(random()::real, array[26])
        from sample_steps() k, generate_series(0, k.slots - 1) n
      on conflict (node_id, step, slot) do update set at = excluded.at, measured = excluded.measured"""
    metadata(instance, fill)
    rows, size = metadata(
        instance, f"select count(*), sum(pg_column_size(s.*)) from sample s where node_id = '{node}'"
    ).split("|")
    assert int(rows) == 1630 and int(size) < 400_000
    sample = json.dumps([{"node_id": node, "at": "now", "measured": [1]}])
    metadata(instance, f"select host_api.samples('{sample}')")  # by somebody who is no host
    assert metadata(instance, f"select count(*) from sample where node_id = '{node}' and measured = '{{1}}'") == "0"
    instance.delete(name)
    until(
        lambda: metadata(instance, f"select count(*) from sample where node_id = '{node}'") == "0", 20, "all is purged"
    )
