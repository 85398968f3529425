"""What a wish asks beyond plain PostgreSQL: what is refused, and with which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pgherd.errors import Incorrect
from pgherd.fleet.placement import Host, choose
from pgherd.model import features
from pgherd.model.service import Change, Wish
from pgherd.settings import Settings


def wish(**fields: Any) -> Wish:
    return Wish.draft(Change(plan="hobbyist-2", variant="timescale", **fields), "18")


def group_of(field: str, name: str, value: int) -> dict[str, Any]:
    return {field.replace("-", "_"): {name: value}}


@pytest.mark.parametrize(("field", "name"), features.BOUNDS)
def test_what_the_library_would_refuse(field: str, name: str) -> None:
    least, most = features.BOUNDS[field, name]
    for value in (least, most):
        features.check(wish(**group_of(field, name, value)))
    for value in (least - 1, most + 1):
        with pytest.raises(Incorrect) as caught:
            features.check(wish(**group_of(field, name, value)))
        assert caught.value.message == f"{field}.{name}: must be an integer from {least} to {most}"


FACTS = {"extensions": {"15": {"pgaudit": "1.7"}, "17": {"timescaledb": "2.19"}, "18": {"pgaudit": "18"}}}


def refusal(hosts: list[dict[str, Any]], **fields: Any) -> str:
    with pytest.raises(Incorrect) as caught:
        features.check(Wish.draft(Change(plan="hobbyist-2", **fields), "15"), features.Installed({}), lambda: hosts)
    return caught.value.message


def test_advice_for_what_is_not_installed_can_be_followed() -> None:
    """TimescaleDB for 15 is no package of Debian's, and the script has none; other versions help, there or to come."""
    lacks = "variant: timescaledb for PostgreSQL 15 is not installed here"
    debian = ", and Debian has it from PostgreSQL 17 on"
    other = "; a new service can have it with version 17"
    assert refusal([FACTS], variant="timescale") == lacks + debian + other
    assert refusal([], variant="timescale").startswith(
        f"{lacks}{debian}: an operator runs `sudo sh install/postgresql.sh 17` and `pgherd restart`"
    )
    assert "postgresql-18-timescaledb" in refusal([FACTS], variant="timescale", version="18")
    audit = refusal([FACTS], pgaudit_settings={"feature_enabled": True})
    assert "postgresql-15-pgaudit" in audit and audit.endswith("with version 15 or 18")


def test_the_script_has_what_the_advice_says() -> None:
    script = (Path(__file__).parents[2] / "install/postgresql.sh").read_text()
    for extension, first in features._PACKAGED.items():
        for major, line in re.findall(r"^ +(\d+)\) (release=.*) ;;$", script, re.MULTILINE):
            brings = f"postgresql-$major-{extension}" in script or f"postgresql-{major}-{extension}" in line
            assert brings == (int(major) >= first), (extension, major)


def test_a_create_and_an_update_say_the_same() -> None:
    host = Host(uuid4(), "a", 8 << 30, {"15": "15.18", "17": "17.10"}, 0, 0, FACTS)
    with pytest.raises(Incorrect) as caught:
        choose([host], "15", 2 << 30, Settings(home="/h"), ["timescaledb"])
    assert caught.value.message == refusal([FACTS], variant="timescale")
