"""Directories of a service's OS user in directories of root's: made, and deleted by the user's own hand."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pgherd import unprivileged
from pgherd.errors import HostFault
from pgherd.unprivileged import Account


def make(directory: Path, account: Account | None, mode: int = 0o700) -> None:
    """Let `directory`, in one that only root writes, exist and be the account's."""
    if directory.exists():
        return
    aside = directory.with_name(f".{directory.name}.new")
    with contextlib.suppress(FileNotFoundError):
        aside.rmdir()
    aside.mkdir(mode=mode)
    if account is not None:
        os.chown(aside, account.uid, account.gid, follow_symlinks=False)
    aside.rename(directory)


def delete(directory: Path) -> None:
    """Empty a directory under its owner's uid, as root's hand could be led elsewhere; remove it. Raises HostFault."""
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        return
    rooted = os.geteuid() == 0
    if not rooted or status.st_uid != 0:
        owner = Account("", status.st_uid, status.st_gid) if rooted else None
        remove = 'find "$1" -mindepth 1 -delete'
        empty = f'{remove} 2>/dev/null || {{ chmod -R u+rwX "$1"; {remove}; }}'
        answer = unprivileged.run(owner, ["/bin/sh", "-c", empty, "sh", str(directory)], timeout=600)
        if answer.code != 0:
            raise HostFault("A directory of a service cannot be deleted.", detail=answer.err[-300:])
    os.rmdir(directory)
