"""The table of operations that are still to come, and its copy in the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.api.operations_table import BEGIN, END, replaced
from pgherd.api.unavailable import COMING, concerns_postgres, refusals, table
from pgherd.contract.document import load_hosted
from pgherd.errors import Incorrect

HOSTED = load_hosted()
README = Path(__file__).parents[2] / "README.md"


def test_readme_has_exactly_this_table() -> None:
    """Repair with `python -m pgherd.api.operations_table --write README.md`."""
    text = README.read_text()
    assert replaced(text, table(HOSTED)) == text


def test_every_operation_is_served_or_refused() -> None:
    refused = refusals(HOSTED)
    assert set(COMING) <= set(refused) <= set(HOSTED.routes)
    served = set(HOSTED.routes) - set(refused)
    assert all(concerns_postgres(HOSTED.routes[name]) for name in served)
    assert {"create-dbaas-service-pg", "create-dbaas-postgres-user", "list-zones"} <= served


def test_refusals_say_why() -> None:
    refused = refusals(HOSTED)
    assert refused["get-dbaas-task"].startswith("get-dbaas-task is not available yet: it comes with")
    assert refused["get-dbaas-service-kafka"].endswith("offers services of type pg only.")
    assert refused["attach-dbaas-service-to-endpoint"].endswith("no external endpoints.")


def test_table_has_a_row_for_each_postgres_operation() -> None:
    rows = table(HOSTED).splitlines()[2:]
    assert len(rows) == len(set(rows)) == sum(map(concerns_postgres, HOSTED.routes.values()))
    assert "| `list-zones` | `GET /v2/zone` | served |" in rows
    assert sum("| comes with " in row for row in rows) == len(COMING)


def test_markers() -> None:
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    for wrong in ("", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"):
        with pytest.raises(Incorrect):
            replaced(wrong, "new")
