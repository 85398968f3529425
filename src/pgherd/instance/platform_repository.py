"""The repository of the private metadata: its configuration, and the commands that use it.

The same pgBackRest as for services, under the metadata server's own user, with a passphrase that lies with the keys:
whoever restores the metadata needs both. The agent makes the repository and backs up by schedule (`agent.platform`).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from pgherd.drivers import limits, pgbackrest
from pgherd.drivers.pgbackrest import Info, Place, Program, Secrets
from pgherd.errors import HostFault, Unsupported
from pgherd.home import Home
from pgherd.instance.accounts import Accounts, ids, run_as
from pgherd.instance.layout import write_file
from pgherd.settings import Settings
from pgherd.spec import S3, Repository

NAME = "platform"  # its directory under HOME/backups, its path in a bucket
PORT = 5432  # of the metadata's socket
#: Bytes of WAL that may wait for the repository before it is given up.
_QUEUE = 1 << 30
_PATIENCE = 600.0  # seconds for another command that works at the repository


@dataclass
class PlatformRepository:
    """The repository of one instance's metadata."""

    settings: Settings
    who: Accounts

    def __post_init__(self) -> None:
        self.home = Home(self.settings.root)
        self.config = self.home.metadata / "config"
        self.program = pgbackrest.program(self.settings.pgbackrest)

    @property
    def place(self) -> Place:
        """Where its pgBackRest finds all it needs."""
        return Place(
            self.home.metadata / "data", self.home.metadata_socket, PORT, self.home.metadata / "spool", self.config,
            self.home.backups / NAME / "repo",
        )  # fmt: skip

    def parameters(self) -> dict[str, str | int]:
        """What the metadata's postgresql.conf says of archiving. Without pgBackRest segments go nowhere."""
        if self.program is None:
            return {"archive_mode": "on", "archive_command": "/bin/true", "archive_timeout": 0}
        timeout = self.settings.archive_timeout_seconds
        command = pgbackrest.archive_command(self.config)
        # After a start the checkpointer sleeps as long as this before it heeds archive_timeout.
        soon = max(30, min(timeout, 300))
        return {
            "archive_mode": "on", "archive_command": command, "archive_timeout": timeout, "checkpoint_timeout": soon,
        }  # fmt: skip

    def ensure_script(self) -> None:
        """What PostgreSQL calls for each segment is there before it starts; until the repository is, they are let go.

        No backup can need them: the first one comes after.
        """
        if self.program is None:
            return
        text = pgbackrest.render_push(self.program, self.place, waits=False)
        write_file(self.config / pgbackrest.PUSH, text, 0o640, self._owner)

    def ensure_configuration(self) -> None:
        """Directories and pgBackRest's configuration are there; the key file must be."""
        if self.program is None:
            return
        database = ids(self.who.database)
        root = ids(None)[0]
        for path, owner, mode in (
            (self.home.backups, (root, ids(None)[1]), 0o755),
            (self.home.backups / NAME, (root, database[1]), 0o750),
            (self.home.backups / NAME / "repo", database, 0o750),
            (self.place.spool, database, 0o700),
        ):
            if not path.exists():
                path.mkdir(mode=mode)
                os.chown(path, *owner)
                path.chmod(mode)
        s3 = self._s3()
        if s3 is not None and s3.ca:
            write_file(self.config / pgbackrest.CA, s3.ca, 0o640, self._owner)
        repository = Repository(NAME, "s3" if s3 else "directory", "", 1, s3)
        secrets = Secrets(self._passphrase(), self.settings.backup_s3_key, self.settings.backup_s3_secret)
        processes = pgbackrest.beside(limits.cores())
        text = pgbackrest.render(self.program, repository, secrets, self.place, processes=processes, queue=_QUEUE)
        write_file(self.config / pgbackrest.CONFIG, text, 0o640, self._owner)

    def ensure_made(self) -> None:
        """The repository exists and segments go there; the metadata server runs. Raises HostFault."""
        if (self.config / pgbackrest.READY).exists():
            return
        self.run(pgbackrest.stanza_create(self.installed(), self.config))
        write_file(self.config / pgbackrest.READY, "", 0o640, self._owner)

    def note_restored(self) -> None:
        """What was restored from it goes on in it: from the first moment segments go there and a backup is due.

        A home that is younger than its agent's patience has not seen that the repository is there, and would let go
        what says where the timelines part: then the next restore would follow the old one to its end.
        """
        write_file(self.config / pgbackrest.READY, "", 0o640, self._owner)
        write_file(self.home.metadata / pgbackrest.RESTORED, "", 0o600)

    def info(self) -> Info:
        """What is in it. Raises HostFault."""
        return pgbackrest.parse_info(self.run(pgbackrest.info(self.installed(), self.config)))

    def installed(self) -> Program:
        """pgBackRest. Raises Unsupported."""
        if self.program is None:
            raise Unsupported("pgBackRest is not installed; `make up` installs it.")
        return self.program

    def run(self, argv: list[str]) -> str:
        """Run one command as the metadata server's user; what it prints. Raises HostFault with its words.

        It waits for one that works at the repository already, such as the agent's backup of the day.
        """
        deadline, told = time.monotonic() + _PATIENCE, False
        while (done := run_as(self.who.database, argv, check=False)).returncode == pgbackrest.LOCKED:
            if time.monotonic() > deadline:
                break
            if not told:
                print("Another backup of the metadata is being made; waiting for its end.", file=sys.stderr)
            told = True
            time.sleep(0.5)
        if done.returncode != 0:
            said = pgbackrest.complaint((done.stdout + done.stderr).splitlines()[-50:])
            raise HostFault(f"The repository of the metadata: {said or 'no reason given'}")
        return done.stdout

    @property
    def _owner(self) -> tuple[int, int]:
        return ids(None)[0], ids(self.who.database)[1]

    def _passphrase(self) -> str:
        from pgherd.store.vault import parse_keys

        keys = parse_keys(run_as(self.who.control, ["cat", str(self.home.secrets / "keys.toml")]).stdout)
        return keys.repository

    def _s3(self) -> S3 | None:
        known = self.settings
        if not known.backup_s3_endpoint:
            return None
        return S3(
            known.backup_s3_endpoint, known.backup_s3_bucket, known.backup_s3_region, "", "",
            known.backup_s3_prefix, known.s3_ca, known.backup_s3_path_style,
        )  # fmt: skip
