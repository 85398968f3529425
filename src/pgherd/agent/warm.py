"""Node directories: made by a real initdb ahead of time, taken by one rename, and deleted again.

A directory holds `slot.json` (root's record of its OS user and of what initdb decided), `data/` and later
`config/` and `run/`. It is built under `warm/.making-<slot>`, waits as `warm/<slot>` and becomes
`nodes/<node id>`; each change of place is one rename, so it has exactly one place whenever the agent dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import threading
from pathlib import Path

import msgspec

from pgherd.agent import owned
from pgherd.drivers import os_users, postgres
from pgherd.drivers.os_users import OsUsers
from pgherd.drivers.postgres import Cluster, Program
from pgherd.errors import HostFault
from pgherd.unprivileged import Account

log = logging.getLogger("pgherd.agent")

_MAKING = ".making-"


class Slot(msgspec.Struct, frozen=True):
    """Root's record of a directory. `key`: see `postgres.key`; `locale`: what initdb was told."""

    slot: str
    user: str
    key: str
    locale: str


class Slots:
    """The warm pool under `warm` and the making and deleting of node directories."""

    def __init__(self, warm: Path, users: OsUsers) -> None:
        self._warm, self._users = warm, users
        # initdb is all CPU: more at once than cores only make each of them later.
        self._making = threading.BoundedSemaphore(os.cpu_count() or 1)

    def ensure(self, program: Program, directory: Path) -> None:
        """Let `directory` be a node's directory: a warm one, or a new one when none is ready."""
        if directory.exists():
            return
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self._take(program, directory):
            return
        with self._making:
            # While this one waited, others may have been made.
            if not self._take(program, directory):
                self._make(program, idle=False).rename(directory)

    def ensure_empty(self, directory: Path, owner: str) -> None:
        """Let `directory` be a node's directory without data, of the OS user `owner`; empty: of a new one."""
        if directory.exists():
            return
        aside = directory.with_name(f".{directory.name}.new")
        aside.mkdir(mode=0o755, parents=True, exist_ok=True)
        slot = read_slot(aside)
        if slot is None:
            word = owner.removeprefix("pgherd-") if owner else secrets.token_hex(4)
            slot = Slot(word, f"pgherd-{word}" if self._users.rooted else "", "", postgres.locale())
            (aside / "slot.json").write_bytes(msgspec.json.encode(slot))
        owned.make(aside / "data", self._users.ensure(slot.user))
        aside.rename(directory)

    def empty(self, directory: Path) -> None:
        """Delete what a directory holds but for the record of its OS user, and its processes. May run again."""
        if not directory.exists():
            return
        os_users.end_processes(self.account(directory))
        for part in ("data", "run"):
            owned.delete(directory / part)
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "slot.json":
                path.unlink()

    def refill(self, program: Program, size: int) -> bool:
        """Make one directory if fewer than `size` are ready, and delete one that initdb would not make so any more.

        Returns whether anything was done, so that the caller may ask again.
        """
        ready = self._ready()
        stale = [path for path, slot in ready if slot is None or slot.key != postgres.key(program)]
        if stale or len(ready) > size:
            self.discard(stale[0] if stale else ready[-1][0])
            return True
        if len(ready) < size:
            making = self._make(program, idle=True)
            making.rename(self._warm / making.name.removeprefix(_MAKING))
            return True
        return False

    def clean(self) -> None:
        """Delete what an agent left that died while it made or deleted a directory; what resists is reported."""
        for path in self._warm.glob(f"{_MAKING}*"):
            try:
                self.discard(path)
            except (HostFault, OSError) as error:
                log.error("%s is left: %s", path.name, error)

    def discard(self, directory: Path) -> None:
        """Delete a directory, what its user's processes are and left elsewhere, and its OS user. May run again."""
        if not directory.exists():
            return
        slot = read_slot(directory)
        name = slot.user if slot else f"pgherd-{directory.name.removeprefix(_MAKING)}"
        os_users.end_processes(os_users.find(name))
        for part in ("data", "run"):
            owned.delete(directory / part)
        if name:
            self._users.delete(name)
        shutil.rmtree(directory)

    def account(self, directory: Path) -> Account | None:
        """As whom a directory's service runs. None without root. Raises HostFault when the record is gone."""
        slot = read_slot(directory)
        if slot is None:
            raise HostFault("The record of a node's directory is missing.", detail=str(directory))
        if not slot.user:
            return None
        account = os_users.find(slot.user)
        if account is None:
            raise HostFault("The OS user of a node is missing.", detail=slot.user)
        return account

    def _ready(self) -> list[tuple[Path, Slot | None]]:
        with contextlib.suppress(FileNotFoundError):
            names = sorted(name for name in os.listdir(self._warm) if not name.startswith("."))
            return [(self._warm / name, read_slot(self._warm / name)) for name in names]
        return []

    def _take(self, program: Program, directory: Path) -> bool:
        for path, slot in self._ready():
            if slot is not None and slot.key == postgres.key(program):
                with contextlib.suppress(FileNotFoundError):
                    path.rename(directory)
                    return True
        return False

    def _make(self, program: Program, *, idle: bool) -> Path:
        slot = secrets.token_hex(4)
        self._warm.mkdir(mode=0o755, parents=True, exist_ok=True)
        making = self._warm / f"{_MAKING}{slot}"
        making.mkdir(mode=0o755)
        try:
            account = self._users.ensure(f"pgherd-{slot}")
            record = Slot(slot, account.name if account else "", postgres.key(program), postgres.locale())
            (making / "slot.json").write_bytes(msgspec.json.encode(record))
            owned.make(making / "data", account)
            postgres.create(Cluster(program, making, account), idle=idle)
        except BaseException:
            with contextlib.suppress(HostFault, OSError):
                self.discard(making)
            raise
        return making


def read_slot(directory: Path) -> Slot | None:
    """The record of a directory; None when there is none that can be read."""
    try:
        return msgspec.json.decode((directory / "slot.json").read_bytes(), type=Slot)
    except (OSError, msgspec.MsgspecError):
        return None
