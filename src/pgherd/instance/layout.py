"""The directories of an instance, with their owners and modes."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from pgherd.errors import Incorrect
from pgherd.home import Home
from pgherd.instance.accounts import Accounts, ids

#: A unix socket's whole path holds at most 107 bytes; the longest of ours lies this far below the home directory.
_LONGEST_SOCKET = "/nodes/00000000-0000-0000-0000-000000000000/run/.s.PGSQL.29999"


def ensure_layout(home: Home, who: Accounts) -> None:
    """Make every directory that is missing and set owner and mode. Raises Incorrect when the place does not do."""
    if not re.fullmatch(r"/[\w./@+-]*", str(home.root), re.ASCII):
        raise Incorrect("Setting home must be an absolute path of letters, digits and . _ / @ + - alone.")
    if len(os.fsencode(str(home.root) + _LONGEST_SOCKET)) > 107:
        most = 107 - len(_LONGEST_SOCKET)
        raise Incorrect(
            f"Setting home is too long for the services' sockets (at most {most} characters); set PGHERD_HOME."
        )
    root = (os.geteuid(), os.getegid())
    _ensure_parents(home.root, who)
    control, database = ids(who.control), ids(who.database)
    open_mode = 0o755 if who.control else 0o700
    for path, owner, mode in (
        (home.root, root, open_mode),
        (home.releases, root, 0o755),
        (home.scan, root, 0o755),
        (home.logs, root, 0o755),
        (home.metadata, root, 0o755),
        (home.metadata / "config", (root[0], database[1]), 0o750),
        (home.metadata_socket, (database[0], control[1]), 0o750),
        (home.secrets, control, 0o700),
        (home.agent, root, 0o700),
        (home.warm, root, 0o755),
        (home.nodes, root, 0o755),
    ):
        _ensure(path, owner, mode)


def _ensure_parents(path: Path, who: Accounts) -> None:
    """As root the services' users must be able to pass every directory above; those that exist are not changed."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=0o755)
            parent.chmod(0o755)
        elif who.control and not parent.stat().st_mode & stat.S_IXOTH:
            raise Incorrect(
                f"The home directory {path} lies below {parent}, which other users may not pass;"
                f" choose another with PGHERD_HOME, or run: chmod o+x {parent}"
            )


def _ensure(path: Path, owner: tuple[int, int], mode: int) -> None:
    if path.is_symlink() and not path.is_dir():
        raise Incorrect(f"{path} is a link that leads nowhere.")
    path.mkdir(mode=mode, exist_ok=True)
    found = path.stat()
    if (found.st_uid, found.st_gid) != owner:
        os.chown(path, *owner)
    if stat.S_IMODE(found.st_mode) != mode:
        path.chmod(mode)


def write_file(path: Path, text: str, mode: int, owner: tuple[int, int] | None = None) -> bool:
    """Put `text` in place atomically with its mode and owner; whether the content changed."""
    try:
        before = path.read_text()
        found = path.stat()
        if before == text and stat.S_IMODE(found.st_mode) == mode and owner in (None, (found.st_uid, found.st_gid)):
            return False
    except FileNotFoundError:
        before = None
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    return before != text
