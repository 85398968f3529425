"""The second wall before the metadata: a text that it cannot hold is the caller's mistake, all else is not."""

from __future__ import annotations

import psycopg
import pytest

from pgherd.errors import Incorrect
from pgherd.store.db import _storable


def test_a_character_that_cannot_be_stored_is_refused() -> None:
    for error in (psycopg.errors.UntranslatableCharacter(), psycopg.errors.CharacterNotInRepertoire()):
        with pytest.raises(Incorrect, match="NUL"), _storable():
            raise error
    with pytest.raises(Incorrect, match="NUL"), _storable():
        psycopg.sql.Literal("a\0b").as_bytes(None)
    with pytest.raises(Incorrect, match="NUL"), _storable():
        psycopg.sql.Literal("\ud800").as_bytes(None)


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(psycopg.errors.DivisionByZero), _storable():
        raise psycopg.errors.DivisionByZero
