"""What a service's PostgreSQL says of its tables: a tenant may have written the answer."""

from __future__ import annotations

import json

import pytest

from pgherd.drivers.statistics import MOST_TABLES, parse_tables
from pgherd.errors import HostFault


def _table(name: str = "t", **counted: object) -> dict[str, object]:
    return {"datname": "defaultdb", "schemaname": "public", "relname": name, "counted": counted}


def test_what_is_zero_or_unknown_is_left_out() -> None:
    found = parse_tables(json.dumps([_table('a"\n', seq_scan=0, n_tup_ins=7.0, other=5)]) + "\n")
    assert found == [{"datname": "defaultdb", "schemaname": "public", "relname": 'a"\n', "n_tup_ins": 7.0}]
    assert parse_tables("[]") == []


@pytest.mark.parametrize(
    "answer",
    [
        "", "{}", "null", "[1]", '[{"datname": 1}]',
        json.dumps([_table(seq_scan="1")]),
        json.dumps([_table(seq_scan=1e31)]),
        '[{"datname":"d","schemaname":"s","relname":"r","counted":{"seq_scan":1e999}}]',
        json.dumps([_table("a\0")]),
        json.dumps([_table(), _table()]),  # the exporter would tell nothing at all
        json.dumps([_table(str(n)) for n in range(MOST_TABLES + 1)]),
        json.dumps([_table("x" * 300_000)]),
    ],
)  # fmt: skip
def test_all_else_is_refused(answer: str) -> None:
    with pytest.raises(HostFault):
        parse_tables(answer)
