"""What lies in a node's directory of data: looked at, exchanged and cleared by its own user. See `origins`."""

from __future__ import annotations

import re

from pgherd.drivers import recovery
from pgherd.drivers.postgres import Cluster
from pgherd.errors import HostFault
from pgherd.unprivileged import run

_DAY = 86_400.0  # seconds; a recovery that takes longer is given up


def exchange(cluster: Cluster, origin_id: str, taken: str) -> None:
    """Put `taken` into force, once; the server is stopped. What was there before is kept beside it."""
    script = (
        'cd "$1" || exit 1; made=$3; before=before-$2;'
        ' if [ -d "$made" ]; then'
        ' if [ -e pgdata ] && [ ! -e "$before" ]; then mv -T pgdata "$before" || exit 1; fi;'
        # What was acknowledged is another history's, which may have had segments of the same names.
        ' rm -rf spool/archive pgdata; mv -T "$made" pgdata || exit 1; sync . ; fi; [ -f pgdata/PG_VERSION ]'
    )
    argv = ["/bin/sh", "-c", script, "sh", str(cluster.directory / "data"), origin_id, taken]
    answer = run(cluster.account, argv, timeout=600)
    if answer.code != 0:
        raise HostFault("A node's new data cannot be put in place.", detail=answer.err[-300:])


def ensure_ended(cluster: Cluster) -> None:
    """The stopped cluster ended in order, so that what it wrote last is ready to be archived. Raises HostFault."""
    shown = run(cluster.account, [f"{cluster.program.bin}/pg_controldata", "-D", str(cluster.pgdata)])
    if re.search(rb"cluster state: +shut down\n", shown.out):
        return
    argv = recovery.command(cluster.program.bin, cluster.config, cluster.pgdata, "", "", "latest")
    answer = run(cluster.account, argv, stdin=b"SELECT 1;\n\n", timeout=_DAY)
    if answer.code != 0:
        raise HostFault("The data does not recover.", detail=recovery.complaint(answer.err)[:300])


def is_there(cluster: Cluster, name: str = "pgdata") -> bool:
    """Whether the node has data, be it damaged; looked at by its own user. Raises HostFault when that cannot be told:
    a disk that cannot be read must not pass for one that is empty."""
    files = [str(cluster.directory / "data" / name / file) for file in ("PG_VERSION", "global/pg_control")]
    looked = run(cluster.account, ["stat", "-c", "%F", "--", *files], timeout=10)
    if b"regular" in looked.out:
        return True
    if len(re.findall("^stat: .*: (?:No such file or directory|Not a directory)$", looked.err, re.MULTILINE)) == 2:
        return False
    raise HostFault("Whether the node's data is there cannot be told.", detail=looked.err.strip()[-300:])


def bytes_aside(cluster: Cluster, origin_id: str) -> int:
    """The size of what is kept from before this origin, 0: nothing is. Raises HostFault when that cannot be told."""
    script = '[ -d "$1" ] || { echo 0; exit; }; du -sb "$1" | cut -f 1'
    path = cluster.directory / "data" / f"before-{origin_id}"
    answer = run(cluster.account, ["/bin/sh", "-c", script, "sh", str(path)], timeout=120)
    text = answer.out.strip()
    if not text.isdigit():
        raise HostFault("A node's earlier data cannot be read.", detail=answer.err[-300:])
    return int(text)


def tidy(cluster: Cluster, keep: str) -> None:
    """Delete what is neither in force nor from before the origin `keep`: what was made in vain, what was left."""
    script = (
        'cd "$1" || exit 1; code=0; for d in making made-* before-* spool-making; do'
        ' [ "$d" = "before-$2" ] || rm -rf "$d" || code=1; done; exit $code'
    )
    answer = run(cluster.account, ["/bin/sh", "-c", script, "sh", str(cluster.directory / "data"), keep], timeout=600)
    if answer.code != 0:
        raise HostFault("A node's earlier data cannot be deleted.", detail=answer.err[-300:])
