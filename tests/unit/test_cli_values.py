"""Settings and bodies from the command line."""

from __future__ import annotations

import inspect
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pgherd.cli import service
from pgherd.cli.outcome import CliError, Exit
from pgherd.cli.values import read_body, typed_settings
from tests.contract.answers import document

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "jit": {"type": "boolean"},
        "log_temp_files": {"type": "integer"},
        "timezone": {"type": "string"},
        "track_functions": {"type": "string", "enum": ["all", "pl", "none"]},
        "pg_stat_statements.track": {"type": "string", "nullable": True},
        "ratio": {"type": "number"},
        "wal": {"type": "object", "properties": {"max_wal_senders": {"type": "integer"}}},
    },
}
DOCUMENT = {
    "components": {
        "schemas": {
            "version": {"type": "string"},
            "pg": SCHEMA,
            "body": {
                "type": "object",
                "properties": {
                    "plan": {"type": "string"},
                    "version": {"$ref": "#/components/schemas/version"},
                    "pg-settings": {"$ref": "#/components/schemas/pg"},
                    "ip-filter": {"type": "array", "items": {"type": "string"}},
                    "work-mem": {"type": "integer"},
                    "termination-protection": {"type": "boolean"},
                },
            },
        }
    }
}
BODY = {"$ref": "#/components/schemas/body"}


def body(*words: str) -> Any:
    return read_body(words, BODY, DOCUMENT)


def test_settings_get_the_type_of_their_schema() -> None:
    pairs = ["jit=on", "log_temp_files=-1", "timezone=1", "ratio=0.5", "wal.max_wal_senders=30"]
    assert typed_settings(SCHEMA, pairs) == {
        "jit": True,
        "log_temp_files": -1,
        "timezone": "1",
        "ratio": 0.5,
        "wal": {"max_wal_senders": 30},
    }


def test_a_dot_may_belong_to_the_name() -> None:
    assert typed_settings(SCHEMA, ["pg_stat_statements.track=top"]) == {"pg_stat_statements.track": "top"}
    assert typed_settings(SCHEMA, ["pg_stat_statements.track=null"]) == {"pg_stat_statements.track": None}


def test_null_is_taken_wherever_the_contract_has_it() -> None:
    route = document()["paths"]["/dbaas-postgres/{name}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    schemas = document()["components"]["schemas"]
    tried = 0
    for group in ("pg", "pgbouncer", "pglookout", "timescaledb", "pgaudit"):
        schema = schemas[f"json-schema-{group}"]
        for key, inner in schema["properties"].items():
            if inner.get("nullable"):
                assert typed_settings(schema, [f"{key}=null"]) == {key: None}
                pair = read_body([f"{group}-settings.{key}: null"], route, document())
                assert pair == {f"{group}-settings": {key: None}}
                tried += 1
            elif inner["type"] != "string" or "enum" in inner:
                with pytest.raises(CliError):
                    typed_settings(schema, [f"{key}=null"])
    assert tried, "the contract has none any more"


def test_a_value_may_hold_the_sign() -> None:
    assert typed_settings(SCHEMA, ["timezone=a=b"]) == {"timezone": "a=b"}


@pytest.mark.parametrize(
    ("pair", "part"),
    [
        ("jit", "KEY=VALUE"),
        ("jti=on", "no setting 'jti'"),
        ("jit=maybe", "jit must be of type boolean"),
        ("log_temp_files=1.5", "log_temp_files must be of type integer"),
        ("track_functions=some", "all, pl, none"),
    ],
)
def test_a_wrong_setting_is_named(pair: str, part: str) -> None:
    with pytest.raises(CliError) as caught:
        typed_settings(SCHEMA, [pair])
    assert part in caught.value.message
    assert caught.value.code is Exit.USAGE


def test_a_misspelt_setting_is_guessed() -> None:
    with pytest.raises(CliError) as caught:
        typed_settings(SCHEMA, ["max_wal_senders=30"])
    assert "wal.max_wal_senders" in caught.value.hint


def test_no_words_are_no_body() -> None:
    assert body() is None


def test_json_is_taken_as_it_is() -> None:
    assert body('{"version": 15, "plan":', '"x"}') == {"version": 15, "plan": "x"}
    assert body("[1]") == [1]


def test_pairs_get_the_types_of_the_contract() -> None:
    assert body("plan: startup-4, version: 15, work-mem: 8, termination-protection: true") == {
        "plan": "startup-4",
        "version": "15",
        "work-mem": 8,
        "termination-protection": True,
    }


def test_pairs_may_come_in_several_words_and_braces() -> None:
    assert body("{plan:", "startup-4,", "pg-settings: {jit: off}}") == {
        "plan": "startup-4",
        "pg-settings": {"jit": False},
    }


def test_dotted_keys_find_their_place() -> None:
    text = "pg-settings.jit: true, pg-settings.wal.max_wal_senders: 30, pg-settings.pg_stat_statements.track: top"
    assert body(text) == {
        "pg-settings": {"jit": True, "wal": {"max_wal_senders": 30}, "pg_stat_statements.track": "top"}
    }


def test_lists() -> None:
    assert body("ip-filter: [10.0.0.0/8, 192.168.0.0/16]") == {"ip-filter": ["10.0.0.0/8", "192.168.0.0/16"]}
    assert body("ip-filter[]: 10.0.0.0/8, ip-filter[]: 192.168.0.0/16")["ip-filter"][1] == "192.168.0.0/16"
    assert body("ip-filter: []") == {"ip-filter": []}


def test_quotes_and_colons_inside_values() -> None:
    assert body('plan: "a, b: c"') == {"plan": "a, b: c"}
    assert body("plan: 2001:db8::/32") == {"plan": "2001:db8::/32"}


def test_without_a_schema_the_look_decides() -> None:
    assert read_body(["a: 1, b: x, c: null, d: 1.5"], None, {}) == {"a": 1, "b": "x", "c": None, "d": 1.5}


@pytest.mark.parametrize("text", ["plan", "{plan: x", 'plan: "x', '{"plan": }', "[1", "ip-filter: [a"])
def test_what_is_no_body_is_a_usage_error(text: str) -> None:
    with pytest.raises(CliError) as caught:
        body(text)
    assert caught.value.code is Exit.USAGE


def test_a_body_from_a_file_and_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "body.json").write_text(json.dumps({"plan": "x"}))
    assert body(f"@{tmp_path}/body.json") == {"plan": "x"}
    monkeypatch.setattr("sys.stdin", io.StringIO('{"plan": "y"}'))
    assert body("-") == {"plan": "y"}
    with pytest.raises(CliError):
        body(f"@{tmp_path}/absent.json")


#: Fields that the command line has under other names, or leaves to `pgherd api`.
ELSEWHERE = {
    "backup-schedule": "backup_hour",
    "maintenance": "maintenance_dow",
    "integrations": None,
    "migration": None,
    "fork-from-service": "fork_from",
    "recovery-backup-time": "to",
}


@pytest.mark.parametrize(("method", "command"), [("post", service.create), ("put", service.update)])
def test_every_field_of_the_contract_has_an_option(method: str, command: Any) -> None:
    body = document()["paths"]["/dbaas-postgres/{name}"][method]["requestBody"]["content"]["application/json"]
    offered = set(inspect.signature(command).parameters)
    for field in body["schema"]["properties"]:
        option = ELSEWHERE.get(field, field.replace("-settings", "-setting").replace("-", "_"))
        assert option is None or option in offered, field
