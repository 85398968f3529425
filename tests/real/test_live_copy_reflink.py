"""A copy on a file system that can clone: it takes next to no room, and so next to no time."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd.spec import Origin
from tests.plugins.host import RunningHost, rooted

_SIZE = 2 << 30
_MAKE = shutil.which("mkfs.xfs") or "/sbin/mkfs.xfs"


@pytest.fixture
def cloning() -> Iterator[Path]:
    """A directory on an XFS that can clone."""
    if not os.path.exists(_MAKE):
        pytest.skip("needs xfsprogs")
    work = Path(tempfile.mkdtemp(prefix="pgherd-xfs-", dir="/var/tmp"))
    work.chmod(0o755)
    image, place = work / "image", work / "home"
    with open(image, "wb") as file:
        file.truncate(_SIZE)
    subprocess.run([_MAKE, "-q", "-m", "reflink=1", str(image)], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    place.chmod(0o755)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
    shutil.rmtree(work)


@rooted
def test_a_fork_shares_its_blocks_with_the_source(cloning: Path) -> None:
    host = RunningHost(cloning)
    try:
        source = host.running()
        with host.connect(source) as connection:
            connection.execute("create table t as select i, repeat(md5(i::text), 20) from generate_series(1, 200000) i")
            connection.execute("select pg_size_pretty(pg_relation_size('t'))")
        host.sql(source, "checkpoint;")
        os.sync()
        before = shutil.disk_usage(cloning).used
        copy = host.spec(origin=Origin("o-1", source=source.node_id))
        host.link.wish(copy)
        host.until_in_force(copy, 90)
        os.sync()
        more = shutil.disk_usage(cloning).used - before
        size = int(host.sql(copy, "select pg_database_size('defaultdb');"))
        assert size > 120 << 20 and more < 80 << 20, (size, more)
        with host.connect(copy) as connection:
            assert connection.execute("select count(*) from t").fetchone() == (200000,)
    finally:
        host.close()
