"""Configuration, certificate and key of a service, in a directory that it can read but not write."""

from __future__ import annotations

import os
from pathlib import Path

from pgherd.errors import HostFault
from pgherd.unprivileged import Account


def install(config: Path, name: str, text: str, account: Account | None) -> bool:
    """Write `config`/`name` for the service to read; returns whether it changed. Not synced: it can be made again.

    Root keeps the ownership, so the service cannot change it: 0640 with the service's group. Without root 0600.
    """
    if "\0" in text:
        raise HostFault("A configuration file holds a zero byte.", detail=name)
    target, aside = config / name, config / f".{name}.new"
    if target.exists() and target.read_text() == text:
        return False
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        if account is not None:
            os.fchown(file.fileno(), 0, account.gid)
            os.fchmod(file.fileno(), 0o640)
        file.write(text)
    aside.rename(target)
    return True
