"""Stops one process of an instance for a while, and reaches into its metadata."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from tests.plugins.instance import ROOTED, Instance


@contextlib.contextmanager
def stopped(instance: Instance, name: str) -> Iterator[None]:
    """The process (`worker`, `agent`) is down inside the block and up again after it."""
    directory = str(instance.home / "s6" / name)
    subprocess.run(["s6-svc", "-wD", "-T", "20000", "-d", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["s6-svc", "-wu", "-T", "20000", "-u", directory], check=True)


def metadata(instance: Instance, statement: str) -> str:
    """What psql prints for a statement in the metadata, as the OS user that may look."""
    environment = {"PATH": os.environ["PATH"], "PGHOST": str(instance.home / "metadata/run"), "PGUSER": "pgherd"}
    argv = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", "pgherd", "-c", statement]
    who = {"user": "pgherd", "group": "pgherd", "extra_groups": []} if ROOTED else {}
    done = subprocess.run(argv, env=environment, cwd="/", capture_output=True, text=True, check=False, **who)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout.strip())
