"""`pgherd doctor` says which majors have services without the extension `pgherd`."""

from __future__ import annotations

from pathlib import Path

from pgherd.instance import checks_machine
from pgherd.settings import Settings


def _major(root: Path, major: str, *, extension: bool) -> str:
    """The programs of a PostgreSQL, as far as the check asks them; `MAJOR=DIR`."""
    programs, share = root / major / "bin", root / major / "share"
    (share / "extension").mkdir(parents=True)
    programs.mkdir()
    for name, words in (("postgres", f"postgres (PostgreSQL) {major}.1"), ("pg_config", f"{share}\\n{root}/lib")):
        (programs / name).write_text(f"#!/bin/sh\nprintf '{words}\\n'\n")
        (programs / name).chmod(0o755)
    if extension:
        (share / "extension/pgherd.control").write_text("default_version = '1'\n")
    return f"{major}={programs}"


def test_a_major_without_it_is_named_with_what_to_do(tmp_path: Path) -> None:
    named = [_major(tmp_path, "13", extension=True), _major(tmp_path, "15", extension=False)]
    named.append(_major(tmp_path, "16", extension=True))
    found = {one.what: one for one in checks_machine.guards(Settings(postgres_bindirs=",".join(named)))}
    assert {what: one.level for what, one in found.items()} == {
        "guards 13": "warning", "guards 15": "warning", "guards 16": "ok",
    }  # fmt: skip
    assert "cannot have it; take 14 or newer" in found["guards 13"].todo
    assert f"install/postgresql/pgherd* to {tmp_path}/15/share/extension" in found["guards 15"].todo


def test_a_wrong_setting_is_left_to_the_check_of_the_programs() -> None:
    assert list(checks_machine.guards(Settings(postgres_bindirs="15"))) == []
