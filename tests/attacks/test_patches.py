"""Row 70: a host whose programs lack known security fixes is told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.instance import checks_machine
from pgherd.instance.programs import postgres_directories
from pgherd.model import minors
from pgherd.settings import Settings


def test_row_70_the_doctor_names_every_postgresql_that_lacks_fixes() -> None:
    found = {one.what: one for one in checks_machine.programs(Settings())}
    for major in postgres_directories(Settings()):
        finding = found[f"postgresql {major}"]
        version = finding.seen.split("(PostgreSQL) ")[1].split()[0].rstrip(":")
        lacks = minors.lacking(version)
        assert finding.level == ("warning" if lacks else "ok"), finding
        assert all(month in finding.seen for month in lacks if month != "all")


@pytest.mark.parametrize(
    ("directory", "seen", "level", "todo"),
    [
        ("/usr/lib/postgresql/15/bin", "15.18", "warning", "install --only-upgrade postgresql-15"),
        ("/usr/lib/postgresql/15/bin", "15.20", "ok", ""),
        ("/usr/local/lib/pgherd/postgresql-17/bin", "17.11", "warning", "sh install/postgresql.sh 17"),
        ("/usr/local/lib/pgherd/postgresql-18/bin", "18.6", "warning", "look for one after 18.6"),
        ("/usr/lib/postgresql/13/bin", "13.23", "warning", "newer major"),
        ("/opt/devel/bin", "devel", "ok", ""),
    ],
)
def test_row_70_and_what_to_do(directory: str, seen: str, level: str, todo: str) -> None:
    major = seen.partition(".")[0]
    finding = checks_machine._patched(major, Path(directory), f"postgres (PostgreSQL) {seen}")
    assert finding.level == level and todo in finding.todo
