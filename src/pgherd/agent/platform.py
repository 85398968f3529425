"""The private metadata is backed up: its repository is made, a backup taken each day, old ones let go.

`instance.platform_repository` lays the configuration; where there is none, as with metadata elsewhere, nothing happens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import threading
import time
from datetime import UTC, datetime, timedelta

from pgherd import unprivileged
from pgherd.agent import backups
from pgherd.agent.jobs import Jobs, Work
from pgherd.drivers import config_files, pgbackrest
from pgherd.drivers.pgbackrest import Program
from pgherd.errors import HostFault, PgherdError
from pgherd.home import Home
from pgherd.spec import Backup, Job
from pgherd.unprivileged import Account

log = logging.getLogger("pgherd.agent")

NODE = "platform"  # under this name its job is known
KEEP = 14  # backups and days
_CHAIN = 7  # most backups from a full one to the next, itself included
_FIRST_AFTER = 60.0  # seconds: what is tried out for a minute needs no backup, and a start has other things to do
_LOOK_EVERY, _RUNNING, _AGAIN = 600.0, 2.0, 120.0
_AGAIN_RESTORED = 10.0  # seconds: the server that was restored may only just be starting
_EVERY = timedelta(days=1)


class Platform:
    """Looks after the metadata's repository in a thread of its own, as long as there is something to do."""

    def __init__(self, home: Home, jobs: Jobs, program: Program | None) -> None:
        self._home, self._jobs, self._program = home, jobs, program
        self._config = home.metadata / "config"
        self._due, self._known_restore = time.monotonic() + _FIRST_AFTER, 0.0
        self._thread: threading.Thread | None = None

    def tend(self) -> None:
        """Start what is due; returns at once."""
        if self._program is None or (self._thread and self._thread.is_alive()):
            return
        if (restored := self._restored_at()) > self._known_restore:
            self._due, self._known_restore = 0.0, restored
        if time.monotonic() < self._due:
            return

        def work() -> None:
            try:
                self._due = time.monotonic() + self._carry_out()
            except (PgherdError, OSError) as error:
                log.warning("The metadata's backups: %s", error)
                self._due = time.monotonic() + (_AGAIN_RESTORED if self._restored_at() else _AGAIN)

        self._thread = threading.Thread(target=work, name="platform", daemon=True)
        self._thread.start()

    def _carry_out(self) -> float:
        """Do what is due; seconds until there may be more."""
        assert self._program is not None
        if not (self._config / pgbackrest.CONFIG).exists():
            return _LOOK_EVERY
        if not (self._config / pgbackrest.READY).exists():
            self._run(pgbackrest.stanza_create(self._program, self._config))
            config_files.install(self._config, pgbackrest.READY, "", self._account)
        known = pgbackrest.parse_info(self._run(pgbackrest.info(self._program, self._config))).backups
        if known and not self._is_due(known):
            (self._home.metadata / pgbackrest.RESTORED).unlink(missing_ok=True)
            return _LOOK_EVERY
        # The name is the same until the backup is there, for an agent that takes over too.
        job = Job(f"after-{known[-1].name if known else 'none'}", "backup", full=_wants_full(known), scheduled=True)
        # Its checkpoint is small, and a backup that waits for the next one would keep `platform backup` waiting too.
        argv = pgbackrest.backup(self._program, self._config, full=job.full, fast=True)
        words = pgbackrest.progress, pgbackrest.complaint
        status = self._jobs.ensure(NODE, job, Work(argv, self._account, (), *words))
        if status.state not in ("done", "failed"):
            return _RUNNING
        self._jobs.end(NODE, "backup")
        if status.state == "failed":
            raise HostFault("The metadata could not be backed up.", detail=status.reason)
        self._expire()
        return _RUNNING  # a restore may have come meanwhile

    def _restored_at(self) -> float:
        """When the metadata was restored, if no backup since is known; unix time."""
        with contextlib.suppress(OSError):
            return os.lstat(self._home.metadata / pgbackrest.RESTORED).st_mtime
        return 0.0

    def _is_due(self, known: list[Backup]) -> bool:
        begun = max(datetime.fromisoformat(backup.started_at) for backup in known)
        # Times of backups are whole seconds. After a restore the archive has two histories of one time.
        restored = int(self._restored_at()) > begun.timestamp()
        return datetime.now(UTC) - begun >= _EVERY or restored or self._gave_up_since(begun)

    def _gave_up_since(self, begun: datetime) -> bool:
        """Whether segments were given up since: nothing after them can be restored but from a newer backup."""
        with contextlib.suppress(OSError):
            return os.lstat(self._home.metadata / "spool" / "given-up").st_mtime > begun.timestamp()
        return False

    def _expire(self) -> None:
        assert self._program is not None
        known = pgbackrest.parse_info(self._run(pgbackrest.info(self._program, self._config))).backups
        fulls = backups.needed(known, KEEP, datetime.now(UTC))
        if fulls < sum(not backup.parent for backup in known):
            self._run(pgbackrest.expire(self._program, self._config, fulls=fulls))

    def _run(self, argv: list[str]) -> bytes:
        answer = unprivileged.run(self._account, ["nice", "-n", "10", *argv], timeout=300, limit=4 << 20)
        if answer.code != 0:
            lines = (answer.out.decode(errors="replace") + answer.err).splitlines()
            raise HostFault(f"The metadata's repository: {pgbackrest.complaint(lines[-50:])[:300]}")
        return answer.out

    @property
    def _account(self) -> Account | None:
        """The metadata server's user: the owner of its data."""
        if os.geteuid() != 0:
            return None
        owner = os.lstat(self._home.metadata / "data")
        return Account(pwd.getpwuid(owner.st_uid).pw_name, owner.st_uid, owner.st_gid)


def _wants_full(known: list[Backup]) -> bool:
    chain = next((i for i, backup in enumerate(reversed(known)) if not backup.parent), len(known))
    return not known or known[-1].damaged or chain + 1 >= _CHAIN
