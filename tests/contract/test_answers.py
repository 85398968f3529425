"""The check that every answer goes through sees what breaks the real clients (wire.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from exoscale.api.v2 import Client

from tests.contract.answers import faults_of


def _without(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda shown: shown.pop(field)


def _with(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda shown: shown.update({name.replace("_", "-"): value for name, value in values.items()})


MUTATIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no protection": _without("termination-protection"),
    "no created-at": _without("created-at"),
    "no uri-params": _without("uri-params"),
    "no prometheus-uri": _without("prometheus-uri"),
    "port as number": lambda shown: shown["uri-params"].update(port=5432),
    "port as number in a list": lambda shown: shown["connection-info"]["params"][0].update(port=5432),
    "port as text": lambda shown: shown["components"][0].update(port="5432"),
    "time without Z": _with(created_at="2026-01-01T00:00:00"),
    "time with an offset": _with(updated_at="2026-01-01T00:00:00+00:00"),
    "time with a space": _with(updated_at="2026-01-01 00:00:00Z"),
    "float size": _with(node_memory=2147483648.0),
    "float percentage": _with(shared_buffers_percentage=20.0),
    "version as number": _with(version=15),
    "filter of objects": _with(ip_filter=[{"network": "10.0.0.0/8"}]),
    "databases of objects": _with(databases=[{"name": "defaultdb"}]),
    "setting of another type": _with(pg_settings={"jit": "on"}),
    "float setting": _with(pg_settings={"log_temp_files": 1.0}),
    "unknown state": _with(state="creating"),
    "unknown node state": lambda shown: shown["node-states"][0].update(state="starting"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_seen(client: Client, service: str, mutation: str) -> None:
    shown = client.get_dbaas_service_pg(name=service)
    assert faults_of("get-dbaas-service-pg", shown) == []
    MUTATIONS[mutation](shown)
    assert faults_of("get-dbaas-service-pg", shown)


def test_ends_have_a_reason() -> None:
    ended = {"id": "6a0f4dd5-67ae-4b11-a4d5-0b0a57a0c6a1", "state": "failure"}
    assert faults_of("get-operation", ended) and not faults_of("get-operation", ended | {"reason": "fault"})
    assert faults_of("get-operation", ended | {"reason": "nonsense"})
