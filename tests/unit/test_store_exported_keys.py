"""The key file as it leaves the machine."""

from __future__ import annotations

import pytest

from pgherd.errors import Incorrect
from pgherd.store import exported_keys
from pgherd.store.vault import Keys, parse_keys

KEYS = Keys("k2", {"k1": b"1" * 32, "k2": b"2" * 32}, "repository-passphrase")


def test_what_is_exported_comes_back() -> None:
    plain, locked = exported_keys.plain(KEYS.text), exported_keys.locked(KEYS.text, "correct horse")
    assert not exported_keys.is_locked(plain) and exported_keys.is_locked(locked)
    assert parse_keys(exported_keys.opened(plain, "")) == KEYS
    assert parse_keys(exported_keys.opened(locked, "correct horse")) == KEYS
    assert "repository-passphrase" not in locked


@pytest.mark.parametrize("damage", ["passphrase", "text", "cost", "form"])
def test_what_does_not_open_is_refused(damage: str) -> None:
    export, passphrase = exported_keys.locked(KEYS.text, "correct horse"), "correct horse"
    if damage == "passphrase":
        passphrase = "battery staple"
    elif damage == "text":
        last = export.rindex('"') - 8
        export = export[:last] + ("A" if export[last] != "A" else "B") + export[last + 1 :]
    elif damage == "cost":
        export = export.replace("cost = 131072", "cost = 1099511627776")
    else:
        export = export.replace("pgherd-keys-1", "pgherd-keys-9")
    with pytest.raises(Incorrect):
        exported_keys.opened(export, passphrase)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(Incorrect, match="at least 8"):
        exported_keys.locked(KEYS.text, "short")


@pytest.mark.parametrize("text", ["", "current = 1", 'current = "k1"\n[keys]\nk2 = "AAAA"\n', "no toml at all ["])
def test_what_is_no_key_file_is_refused(text: str) -> None:
    with pytest.raises(Incorrect):
        parse_keys(text)
