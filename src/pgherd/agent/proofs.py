"""The verify job: a backup is restored beside the node and looked at, see `drivers.proof_child`.

What it makes lies in the node's own directories, under the service's uid, and is removed under it too.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from pgherd import unprivileged
from pgherd.agent.jobs import Work
from pgherd.agent.repositories import Repositories
from pgherd.drivers import pgbackrest, proof_child
from pgherd.drivers.postgres import Cluster
from pgherd.errors import HostFault
from pgherd.spec import Job, NodeSpec, Verification

_ANSWER = 1 << 16  # bytes
_LONGEST = 300  # characters of a text in it
_MOST = 20
#: Tenants may raise them, and recovery cannot do with less than was in use.
_NEEDED = {"max_prepared_transactions": "0", "max_locks_per_transaction": "64"}


def work(
    repositories: Repositories, spec: NodeSpec, cluster: Cluster, job: Job, groups: list[Path], reserve: int
) -> Work:
    """What the job runs; it leaves `reserve` bytes of disk free. It reaches the network only where the repository is
    there."""
    assert spec.repository is not None
    place = _place(cluster)
    asked = {
        "work": str(place), "socket": str(_socket(cluster)), "result": str(_result(cluster)),
        "bin": str(cluster.program.bin), "live": str(cluster.run), "live_pgdata": str(cluster.pgdata),
        "port": cluster.port, "scheduled": job.scheduled, "reserve": reserve,
        "pgbackrest": pgbackrest.command(repositories.installed(), cluster.config, "")[:-1],
        "settings": {name: str(spec.settings.get(name, usual)) for name, usual in _NEEDED.items()},
    }  # fmt: skip
    return Work(
        [os.path.realpath(sys.executable), "-I", "-S", proof_child.__file__, msgspec.json.encode(asked).decode()],
        cluster.account, groups, progress, alone=True,
        network=spec.repository.kind == "s3" or not _has_namespaces(),
        result=functools.partial(_noted, repositories, spec, cluster), clear=functools.partial(clear, cluster),
    )  # fmt: skip


def progress(lines: list[str]) -> float:
    """How far it has come, 0 to 1."""
    for line in reversed(lines):
        if said := re.search(r"\bprogress (\d\.\d+) ", line):
            return min(1.0, float(said[1]))
    return 0.0


def found(cluster: Cluster) -> Verification | None:
    """What the program has left, which a tenant may have written: read under its uid, bounded, decoded into types."""
    answer = unprivileged.run(cluster.account, ["head", "-c", str(_ANSWER), str(_result(cluster))], limit=2 * _ANSWER)
    if answer.code != 0:
        return None
    try:
        told = msgspec.json.decode(answer.out, type=Verification)
    except msgspec.MsgspecError:
        return None
    return msgspec.structs.replace(
        told, backup=_clean(told.backup), wal=_clean(told.wal), lsn=_clean(told.lsn),
        recovered_to=_clean(told.recovered_to), impossible=_clean(told.impossible),
        problems=[_clean(text) for text in told.problems[:_MOST]], broken=told.broken[:_MOST],
    )  # fmt: skip


def _noted(repositories: Repositories, spec: NodeSpec, cluster: Cluster) -> Verification | None:
    """The same, noted for the metrics."""
    told = found(cluster)
    if told is not None and (told.problems or not told.impossible):
        record = repositories.record(spec.service_id)
        record.sound = not told.problems
        record.verified_at = time.time() if record.sound else record.verified_at
        repositories.note(spec.service_id, record)
    return told


def clear(cluster: Cluster) -> None:
    """Nothing of a verify job is left in the node's directories. May run again. Raises HostFault."""
    paths = [str(_place(cluster)), str(_socket(cluster)), str(_result(cluster)), f"{_result(cluster)}.new"]
    answer = unprivileged.run(cluster.account, ["rm", "-rf", "--", *paths], timeout=600)
    if answer.code != 0:
        raise HostFault("What a verification left cannot be deleted.", detail=answer.err[-300:])


def _clean(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:_LONGEST]


def _place(cluster: Cluster) -> Path:
    return cluster.directory / "data" / "proof"


def _socket(cluster: Cluster) -> Path:
    """Beside the living server's: the path of a socket below `data` would be too long."""
    return cluster.run / "p"


def _result(cluster: Cluster) -> Path:
    return cluster.directory / "data" / "proof.json"


@functools.cache
def _has_namespaces() -> bool:
    """Whether a program can be given a network of its own here."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0
