"""The list of extensions: its page, and what of it a host has."""

from __future__ import annotations

from pathlib import Path

from pgherd.drivers import extensions

PAGE = Path(__file__).parents[2] / "docs/extensions.md"


def test_the_page_is_written_from_the_data() -> None:
    """Repair with `python -m pgherd.drivers.extensions --write docs/extensions.md`."""
    assert PAGE.read_text() == extensions.page()


def test_nothing_is_both_allowed_and_refused() -> None:
    allowed = {name for major in extensions.MAJORS for name in extensions.names(major)}
    assert not allowed & set(extensions.REFUSED)
    assert extensions.OWN not in allowed


def test_what_reaches_files_programs_or_other_languages_is_refused() -> None:
    for name in ("file_fdw", "adminpack", "plperlu", "plpython3u", "plperl", "pageinspect", "pg_surgery"):
        assert name in extensions.REFUSED


def test_only_what_is_installed_is_offered(tmp_path: Path) -> None:
    (tmp_path / "hstore.control").write_text("comment = 'x'\ndefault_version = '1.8'\n")
    (tmp_path / "file_fdw.control").write_text("default_version = '1.0'\n")
    found = extensions.installed("15", tmp_path)
    assert found["hstore"] == "1.8" and found["dblink"] == "" and "file_fdw" not in found
    assert extensions.allow_list(found) == '"hstore"'
