"""One OS user for each service, so that the operating system is the wall between tenants.

Numeric ids rise through a range and only return after its end, so that an id rests after its service is gone.
Without root there are no such users: everything runs as the calling user and every function here does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import subprocess
import time
from pathlib import Path

from pgherd import unprivileged
from pgherd.errors import HostFault
from pgherd.unprivileged import Account

_BUSY, _TAKEN = 1, (4, 9)  # of useradd and groupadd: id not unique, name in use; another may have been faster
_SHARED_DIRECTORIES = ("/dev/shm", "/dev/mqueue", "/tmp", "/var/tmp")
_PATIENCE = 30.0  # seconds to wait for the lock of /etc/passwd


class OsUsers:
    """OS users with ids from `first` to `last`; the last id given is kept in the file `counter`."""

    def __init__(self, first: int, last: int, counter: Path) -> None:
        self._first, self._last, self._counter = first, last, counter
        self.rooted = os.geteuid() == 0

    def ensure(self, name: str) -> Account | None:
        """The account `name`, created when missing. None without root."""
        if not self.rooted:
            return None
        deadline = time.monotonic() + _PATIENCE
        while (account := find(name)) is None:
            number = _gid(name) or self._next_uid()
            ended = _administer("groupadd", "--gid", str(number), name)
            if ended.returncode in (0, 9):
                ended = _administer(
                    "useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent",
                    "--comment", "pgherd service", "--shell", "/usr/sbin/nologin",
                    "--uid", str(number), "--gid", str(number), name,
                )  # fmt: skip
                if ended.returncode == 4:
                    # Two groupadds at once may give one id to both groups: the other's user is none of ours.
                    _administer("groupdel", "--force", name)
            if ended.returncode not in (0, _BUSY, *_TAKEN) or time.monotonic() > deadline:
                raise HostFault("An OS user for a service cannot be created.", detail=ended.stderr.strip()[-300:])
        return account

    def delete(self, name: str) -> None:
        """End every process of the account, remove what it left in shared places, and delete it with its group."""
        deadline = time.monotonic() + _PATIENCE
        while self.rooted and ((account := find(name)) is not None or _gid(name) is not None):
            if account is not None:
                end_processes(account)
                remove_leftovers(account)
            argv = ["groupdel", "--force"] if account is None else ["userdel"]
            ended = _administer(*argv, name)
            if ended.returncode != 0 and time.monotonic() > deadline:
                raise HostFault("The OS user of a service cannot be deleted.", detail=ended.stderr.strip()[-300:])

    def _next_uid(self) -> int:
        self._counter.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._counter, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read().strip()
            last = int(text) if text.isdigit() else self._first - 1
            for _ in range(self._last - self._first + 1):
                last = last + 1 if self._first <= last + 1 <= self._last else self._first
                if not _uid_taken(last):
                    file.seek(0)
                    file.truncate()
                    file.write(f"{last}\n")
                    file.flush()
                    os.fsync(file.fileno())
                    return last
        raise HostFault("Every numeric id for services' OS users is taken.", hint="Widen the setting uid_range.")


def _administer(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def find(name: str) -> Account | None:
    """The account of this name."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, entry.pw_gid)


def end_processes(account: Account | None, patience: float = 10) -> None:
    """SIGKILL every process of the account until none is left; a process may fork meanwhile, hence again and again."""
    deadline = time.monotonic() + patience
    # kill(-1) under the uid reaches exactly its processes; no pid is read from anywhere. It fails when there are
    # none, which spares a look at every process of the host; but zombies that wait for init count there.
    while account and unprivileged.run(account, ["/bin/sh", "-c", "kill -9 -1"], timeout=5).code == 0:
        if not processes_of(account.uid):
            break
        if time.monotonic() > deadline:
            raise HostFault("The processes of a service do not end.", detail=account.name)
        time.sleep(0.01)


def remove_leftovers(account: Account | None) -> None:
    """Remove the account's shared memory, semaphores, queues and temporary files, under its own uid."""
    if account is None:
        return
    places = [place for place in _SHARED_DIRECTORIES if os.path.isdir(place)]
    look = ["find", *places, "-mindepth", "1", "-maxdepth", "1", "-user", str(account.uid)]
    unprivileged.run(account, [*look, "-exec", "chmod", "-R", "u+rwX", "{}", "+", "-exec", "rm", "-rf", "{}", "+"])
    kinds = (("shm", "shmid", "-m"), ("sem", "semid", "-s"), ("msg", "msqid", "-q"))
    options = [option for kind in kinds for option in _ipc(*kind, account)]
    if options:
        unprivileged.run(account, ["ipcrm", *options])


def _ipc(kind: str, column: str, option: str, account: Account) -> list[str]:
    with contextlib.suppress(OSError), open(f"/proc/sysvipc/{kind}") as table:
        head, *rows = (line.split() for line in table)
        ident, owner = head.index(column), head.index("uid")
        return [word for row in rows if row[owner] == str(account.uid) for word in (option, row[ident])]
    return []


def _uid_taken(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return any(entry.name.isdigit() and _owner(entry) == uid for entry in os.scandir("/proc"))
    return True


def _owner(entry: os.DirEntry[str]) -> int | None:
    with contextlib.suppress(OSError):
        return entry.stat().st_uid
    return None


def processes_of(uid: int) -> list[int]:
    """Pids of living processes that run under this uid in any of its four forms."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry.name}/status") as status:
            fields = dict(line.split(":", 1) for line in status if line.startswith(("State:", "Uid:")))
            if str(uid) in fields.get("Uid", "").split() and fields.get("State", "").split()[:1] != ["Z"]:
                found.append(int(entry.name))
    return found
