"""postgresql.conf: quoting, the list of what a tenant may set, and the platform's own part."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.drivers import postgres_settings
from pgherd.errors import HostFault
from pgherd.spec import Admin, Memory, NodeSpec, Setting, Tls

SPEC = NodeSpec(
    node_id="n", service_id="s", generation=1, node_name="a-1", desired="running", version="15", port=21600,
    memory=Memory(16, 64, 16, 4), max_connections=25, settings={}, ip_filter=[], loopback=True,
    admin=Admin("avnadmin", ""), tls=Tls("", ""), disk_bytes=8 << 30,
)  # fmt: skip


def _render(**changes: Any) -> dict[str, str]:
    spec = msgspec.structs.replace(SPEC, **changes)
    text = postgres_settings.render(
        spec, run=Path("/n/run"), config=Path("/n/config"), libraries=["pg_stat_statements"], locale="C.UTF-8"
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" = ", 1) for line in lines)


def test_what_later_work_needs_is_set_from_the_first_day() -> None:
    conf = _render()
    wanted = {"wal_level": "'logical'", "max_wal_senders": "'20'", "max_replication_slots": "'20'"}
    wanted |= {"archive_mode": "on"}
    assert {name: conf[name] for name in wanted} == wanted
    assert (conf["ssl"], conf["password_encryption"]) == ("on", "'scram-sha-256'")


def test_sizes_come_from_the_spec() -> None:
    conf = _render(memory=Memory(100, 200, 30, 7), max_connections=99)
    assert (conf["shared_buffers"], conf["work_mem"], conf["max_connections"]) == ("'100MB'", "'7MB'", "'99'")


def test_the_tenants_setting_wins_over_the_platforms() -> None:
    assert _render(settings={"max_wal_senders": 40})["max_wal_senders"] == "'40'"


@pytest.mark.parametrize("name", ["archive_command", "ssl", "shared_preload_libraries", "jit = on\nport", "Jit"])
def test_a_parameter_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(HostFault):
        _render(settings={name: "x"})


def test_a_parameter_that_the_major_does_not_know_is_left_out() -> None:
    assert "io_method" not in _render(settings={"io_method": "worker"})
    assert "default_toast_compression" not in _render(settings={"default_toast_compression": "lz4"}, version="13")


@given(st.one_of(st.text(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_no_value_can_end_its_line(value: Setting) -> None:
    try:
        quoted = postgres_settings.quote(value)
    except HostFault:
        return
    assert re.fullmatch(r"on|off|'(?:[^'\\\n]|''|\\[\\nrtbf])*'", quoted)


@pytest.mark.parametrize("value", ["a\0b", float("nan"), float("inf"), "x" * 5000])
def test_what_cannot_be_written_is_refused(value: Setting) -> None:
    with pytest.raises(HostFault):
        postgres_settings.quote(value)


def test_every_setting_of_the_contract_is_known_here() -> None:
    document = json.loads((files("exoscale") / "openapi.json").read_text())

    def leaves(schema: str, prefix: str = "") -> set[str]:
        return below(document["components"]["schemas"][f"json-schema-{schema}"]["properties"], prefix)

    def below(properties: dict[str, Any], prefix: str) -> set[str]:
        found: set[str] = set()
        for name, schema in properties.items():
            found |= below(schema["properties"], prefix) if "properties" in schema else {prefix + name}
        return found

    wanted = leaves("pg") | leaves("pgaudit", "pgaudit.") | leaves("timescaledb", "timescaledb.")
    assert wanted - {"pgaudit.feature_enabled"} == set(postgres_settings.ALLOWED)


def test_tenants_may_create_what_the_list_says() -> None:
    text = postgres_settings.render(
        SPEC, run=Path("/n/run"), config=Path("/n/config"), libraries=[], locale="C",
        session_libraries=["pgextwlist"], extensions='"hstore","uuid-ossp"',
    )  # fmt: skip
    assert "session_preload_libraries = 'pgextwlist'\n" in text
    assert """extwlist.extensions = '"hstore","uuid-ossp"'\n""" in text
