"""A service's backup repository on this host: where it is, its configuration, its making, what is in it, its removal.

`HOME/backups/<service id>/` is root's; in it lies `record.json`, root's note, and `repo/`, the service's own. For S3
there is only the note. Every command of pgBackRest runs under the service's uid.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pgherd import sealing, unprivileged
from pgherd.agent import owned
from pgherd.drivers import config_files, pgbackrest
from pgherd.drivers.pgbackrest import Info, Place, Program, Secrets
from pgherd.drivers.postgres import Cluster
from pgherd.errors import HostFault, Unsupported
from pgherd.home import Home
from pgherd.spec import Repository, RepositoryStatus
from pgherd.unprivileged import Account, Answer

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_ANSWER = 4 << 20  # bytes
_SECONDS = 120.0


class Record(msgspec.Struct):
    """Root's note. `user`, `uid`, `gid`: whose `repo/` is; `ready`: it was made; `status`: what was observed last.

    `verified_at`: when a proof found all sound last, unix time; `sound`: what the last proof found.
    """

    user: str = ""
    uid: int = 0
    gid: int = 0
    ready: bool = False
    status: RepositoryStatus | None = None
    verified_at: float = 0.0
    sound: bool = True


@dataclass
class Repositories:
    """All repositories of the host. `program` is None where pgBackRest is not installed."""

    home: Home
    program: Program | None
    private_key: bytes

    def installed(self) -> Program:
        """pgBackRest. Raises Unsupported."""
        if self.program is None:
            raise Unsupported("pgBackRest is not installed on this host.")
        return self.program

    # --- where it is ---------------------------------------------------------------------------------------

    def directory(self, service_id: str) -> Path:
        """The service's directory under HOME/backups."""
        if not _ID.fullmatch(service_id):
            raise HostFault("A service's id is not acceptable.")
        return self.home.backups / service_id

    def place(self, repository: Repository, cluster: Cluster, config: Path | None = None) -> Place:
        """Where a node's pgBackRest finds all it needs; `config`: a directory for it other than the node's."""
        return Place(
            cluster.pgdata, cluster.run, cluster.port, cluster.directory / "data" / "spool",
            config or cluster.config, self.directory(repository.service_id) / "repo",
        )  # fmt: skip

    def record(self, service_id: str) -> Record:
        """Root's note; a new one when there is none that can be read."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((self.directory(service_id) / "record.json").read_bytes(), type=Record)
        return Record()

    def note(self, service_id: str, record: Record) -> None:
        """Write root's note."""
        path = self.directory(service_id) / "record.json"
        aside = path.with_suffix(".new")
        aside.write_bytes(msgspec.json.encode(record))
        aside.rename(path)

    # --- its configuration ---------------------------------------------------------------------------------

    def configure(self, repository: Repository, cluster: Cluster, *, queue: int, processes: int) -> str:
        """Lay the directory and the configuration; the `archive_command` that goes with it. Makes no repository yet."""
        place = self.place(repository, cluster)
        self._ensure_directory(repository, cluster.account)
        self.install(repository, place, cluster.account, queue=queue, processes=processes)
        push = pgbackrest.render_push(self.installed(), place, queue=queue)
        config_files.install(place.config, pgbackrest.PUSH, push, cluster.account)
        return pgbackrest.archive_command(place.config)

    def install(
        self, repository: Repository, place: Place, account: Account | None, *, queue: int = 0, processes: int = 1
    ) -> None:
        """Write the configuration file for a place, secrets opened; for `account` alone to read."""
        s3 = repository.s3
        sealed = [repository.cipher, *([s3.key, s3.secret] if s3 else [])]
        secrets = Secrets(*(sealing.unseal(self.private_key, text) for text in sealed))
        text = pgbackrest.render(self.installed(), repository, secrets, place, processes=processes, queue=queue)
        if s3 and s3.ca:
            config_files.install(place.config, pgbackrest.CA, s3.ca, account)
        config_files.install(place.config, pgbackrest.CONFIG, text, account)

    def _ensure_directory(self, repository: Repository, account: Account | None) -> None:
        directory = self.directory(repository.service_id)
        record = self.record(repository.service_id)
        if record.uid and account and record.uid != account.uid:
            raise HostFault("The repository belongs to another OS user.", detail=record.user)
        self.home.backups.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.mkdir(mode=0o750, exist_ok=True)
        if account is not None:
            os.chown(directory, 0, account.gid)
        if account is not None and not record.uid:
            record.user, record.uid, record.gid = account.name, account.uid, account.gid
            self.note(repository.service_id, record)
        if repository.kind == "directory":
            owned.make(directory / "repo", account, 0o750)

    # --- what is done with it ------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], account: Account | None, *, timeout: float = _SECONDS) -> Answer:
        """One short command of pgBackRest. Raises HostFault with its words."""
        answer = unprivileged.run(account, ["nice", "-n", "10", *argv], timeout=timeout, limit=_ANSWER)
        if answer.code != 0:
            lines = (answer.out.decode(errors="replace") + answer.err).splitlines()
            raise HostFault(f"The repository: {pgbackrest.complaint(lines[-50:])[:300] or 'no reason given'}")
        return answer

    def ensure_made(self, repository: Repository, cluster: Cluster) -> None:
        """The repository exists and segments go there. The cluster runs. Raises HostFault."""
        ready = cluster.config / pgbackrest.READY
        if ready.exists():
            return
        self.run(pgbackrest.stanza_create(self.installed(), cluster.config), cluster.account)
        record = self.record(repository.service_id)
        record.ready = True
        self.note(repository.service_id, record)
        config_files.install(cluster.config, pgbackrest.READY, "", cluster.account)

    def make_anew(self, repository: Repository, cluster: Cluster) -> None:
        """The repository, which is gone, exists again, empty. Raises HostFault, also when it may only be out of sight.

        Root's note lies beside a repository in a directory: where both are gone, a file system may not be mounted.
        """
        if not self.record(repository.service_id).ready:
            raise HostFault("So is its directory: is a file system not mounted? See docs/backups.md.")
        self._ensure_directory(repository, cluster.account)
        self.run(pgbackrest.stanza_create(self.installed(), cluster.config), cluster.account)

    def push_rest(self, repository: Repository, cluster: Cluster) -> None:
        """All that the stopped cluster has written is in the repository, if that was made. Raises HostFault.

        A node that was made anew archives only once it was looked at, so there may be more than the last segment.
        """
        if self.record(repository.service_id).ready:
            push = pgbackrest.push_rest(self.installed(), cluster.config, cluster.pgdata)
            self.run(push, cluster.account, timeout=600)

    def info(self, cluster: Cluster, *, timeout: float = _SECONDS) -> Info:
        """What is in it, told within `timeout` seconds. Raises HostFault."""
        answer = self.run(pgbackrest.info(self.installed(), cluster.config), cluster.account, timeout=timeout)
        return pgbackrest.parse_info(answer.out)

    def remove(self, repository: Repository) -> None:
        """Nothing is left of the repository, its key included. Nothing archives into it any more. May run again."""
        directory = self.directory(repository.service_id)
        if not directory.exists():
            return
        record = self.record(repository.service_id)
        account = Account(record.user, record.uid, record.gid) if record.uid else None
        if repository.kind == "s3" and record.ready:
            self._empty_bucket(repository, directory, account)
        owned.delete(directory / "repo")
        shutil.rmtree(directory)

    def _empty_bucket(self, repository: Repository, directory: Path, account: Account | None) -> None:
        """From a configuration of its own: the node's may be gone."""
        work = directory / "removal"
        owned.make(work, account, 0o750)
        place = Place(work / "none", work, 1, work, directory, work)
        self.install(repository, place, account)
        program = self.installed()
        self.run(pgbackrest.stop(program, directory), account)
        self.run(pgbackrest.stanza_delete(program, directory), account, timeout=600)
        owned.delete(work)
