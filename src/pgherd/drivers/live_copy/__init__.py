"""Copy a running cluster by PostgreSQL's low-level backup API, from one OS user's directory into another's.

No process may read the one and write the other. A child under the source's uid opens files and hands the open
descriptors over a socket; a child under the target's uid makes its own files from them: by a clone where the file
system can (FICLONE), else by copy_file_range, several at a time. Each sees names from the other that it checks.
`psql` holds the one session that the backup needs, and starts the sending child twice: for the data files between
pg_backup_start and pg_backup_stop, then for the WAL that makes them consistent, which a temporary slot has kept.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pgherd import unprivileged
from pgherd.drivers.live_copy import children
from pgherd.errors import HostFault
from pgherd.unprivileged import Account

_PYTHON = os.path.realpath(sys.executable)


class CannotCopy(HostFault):
    """This copy did not succeed, and why; the cluster's repository may still give what it would have given."""


def script(major: int, sender: str) -> str:
    """The session. What follows `\\!` is a shell's line; `sender` names the environment variable with the program."""
    start, stop = ("pg_backup_start", "pg_backup_stop") if major >= 15 else ("pg_start_backup", "pg_stop_backup")
    more = ("", "") if major >= 15 else (", false", "false, ")
    run = f'exec "$PGHERD_PYTHON" -ISc "${sender}"'
    return f"""
    SELECT pg_create_physical_replication_slot('pgherd_copy_' || pg_backend_pid(), true, true);
    SELECT pg_walfile_name({start}('pgherd copy', true{more[0]})) AS start \\gset
    \\setenv PGHERD_PART data
    \\! {run}
    SELECT pg_walfile_name(lsn) AS stop, encode(convert_to(labelfile, 'UTF8'), 'hex') AS label
      FROM {stop}({more[1]}false) \\gset
    \\setenv PGHERD_PART wal
    \\setenv PGHERD_LABEL :label
    \\setenv PGHERD_START :start
    \\setenv PGHERD_STOP :stop
    \\! {run}
    """


def copy(
    psql: Sequence[str], env: dict[str, str], major: int, source: Account | None, pgdata: Path,
    target: Account | None, making: Path, *, timeout: float,
) -> None:  # fmt: skip
    """Let `making`, which exists, is the target's and empty, hold a copy of the running cluster in `pgdata`.

    `psql` and `env` open the platform's session. `timeout` in seconds. Raises CannotCopy; what is in `making` then
    is of no use.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        told = {
            "PGHERD_PYTHON": _PYTHON, "PGHERD_SENDER": children.source(),
            "PGHERD_SOCKET": str(theirs.fileno()), "PGHERD_DATA": str(pgdata),
        }  # fmt: skip
        receiving = pool.submit(
            unprivileged.run, target, [_PYTHON, "-ISc", children.source()], timeout=timeout,
            env={"PGHERD_PART": "receive", "PGHERD_SOCKET": str(ours.fileno()), "PGHERD_DATA": str(making)},
            descriptors=[ours.fileno()],
        )  # fmt: skip
        try:
            sent = unprivileged.run(
                source, psql, stdin=script(major, "PGHERD_SENDER").encode(), timeout=timeout, env={**env, **told},
                descriptors=[theirs.fileno()],
            )  # fmt: skip
        finally:
            theirs.shutdown(socket.SHUT_WR)
        received = receiving.result()
    if sent.code != 0:
        raise CannotCopy("The running cluster cannot be copied.", detail=sent.err.strip()[-500:])
    if received.code != 0 or received.out.strip() != b"complete":
        said = received.err.strip() or sent.err.strip()
        raise CannotCopy("The copy of the running cluster is not complete.", detail=said[-500:])
