"""The OS users of pgherd's own processes, and running a program as one of them.

As root the metadata server, the control plane and the loggers each have a user without a shell; otherwise
everything is the calling user's.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgherd.errors import HostFault


@dataclass(frozen=True)
class Accounts:
    """Names of OS users; None everywhere: the calling user."""

    database: str | None
    control: str | None
    log: str | None


def accounts() -> Accounts:
    """Who runs what on this instance."""
    if os.geteuid() == 0:
        return Accounts(database="pgherd-db", control="pgherd", log="pgherd-log")
    return Accounts(None, None, None)


def ensure_accounts() -> Accounts:
    """Make the users that are missing (root only)."""
    found = accounts()
    for name in (found.database, found.control, found.log):
        if name is not None and not _exists(name):
            made = subprocess.run(
                [
                    "useradd",
                    "--system",
                    "--user-group",
                    "--no-create-home",
                    "--home-dir",
                    "/nonexistent",
                    "--shell",
                    "/usr/sbin/nologin",
                    name,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0 and not _exists(name):
                raise HostFault(f"The OS user {name} cannot be created.", detail=made.stderr.strip())
    return found


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def ids(user: str | None) -> tuple[int, int]:
    """Numeric user and group of an OS user; None: of the calling one."""
    if user is None:
        return os.geteuid(), os.getegid()
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def run_as(user: str | None, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end under a user's ids alone, in `/`, with a minimal environment and umask 077.

    Raises HostFault with the program's last words when it fails, unless `check=False`.
    """
    check = options.pop("check", True)
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **options.pop("env", {})}
    if user is not None:
        uid, gid = ids(user)
        options |= {"user": uid, "group": gid, "extra_groups": []}
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    done = subprocess.run(
        list(argv), capture_output=True, text=True, check=False, cwd="/", env=env, umask=0o077, **options
    )
    if check and done.returncode != 0:
        raise HostFault(f"{os.path.basename(argv[0])} failed.", detail=(done.stderr or done.stdout).strip()[-2000:])
    return done
