"""The OS users of services, where several instances of one machine make them at once."""

from __future__ import annotations

import grp
import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgherd.drivers.os_users import OsUsers
from tests.plugins.host import rooted

pytestmark = rooted

_FIRST, _LAST = 219_000, 219_999


@pytest.fixture
def names(tmp_path: Path) -> Iterator[list[str]]:
    """Of users that are gone afterwards, with their groups."""
    made = [f"pgherd-{secrets.token_hex(4)}" for _ in range(12)]
    yield made
    users = OsUsers(_FIRST, _LAST, tmp_path / "last")
    for name in made:
        users.delete(name)
    assert not {entry.gr_name for entry in grp.getgrall()} & set(made)


def test_three_instances_make_users_at_once(names: list[str], tmp_path: Path) -> None:
    instances = [OsUsers(_FIRST, _LAST, tmp_path / f"last-{i}") for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        made = [*pool.map(lambda i: [instances[i].ensure(name) for name in names[i::3]], range(3))]
    accounts = [account for some in made for account in some if account]
    assert len({account.uid for account in accounts}) == len(names)
    assert all(account.uid == account.gid == grp.getgrnam(account.name).gr_gid for account in accounts)


def test_a_group_that_got_the_id_of_another_ones_user(names: list[str], tmp_path: Path) -> None:
    """Two groupadds at once do that."""
    users = OsUsers(_FIRST, _LAST, tmp_path / "last")
    other = users.ensure(names[0])
    assert other is not None
    subprocess.run(["groupadd", "--non-unique", "--gid", str(other.gid), names[1]], check=True)
    mine = users.ensure(names[1])
    assert mine is not None and mine.uid == mine.gid != other.uid
    assert grp.getgrnam(names[0]).gr_gid == other.gid
