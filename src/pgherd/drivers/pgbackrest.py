"""pgBackRest: its configuration, the argument lists of its commands, and what it says. Pure but for the look-up.

One stanza a repository, one repository a service. Secrets stand in the configuration file only, which the
service can read and nobody else; every command line names it and nothing that is secret.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pgherd.errors import HostFault
from pgherd.spec import Backup, Repository

STANZA = "main"
#: The file in a node's configuration directory that lets segments go: without it they wait.
READY = "archiving"
#: The file beside the metadata that says: this was restored, a backup of it is due.
RESTORED = "restored"
SEGMENT_BYTES = 16 << 20
#: The exit code of a command that another one keeps out.
LOCKED = 50
CONFIG, PUSH, CA = "pgbackrest.conf", "pgbackrest-push", "repository-ca.crt"
_PLACES = ("/usr/local/lib/pgherd/pgbackrest/bin/pgbackrest", "/usr/bin/pgbackrest")
_BLOCKS = (2, 46)  # the first version that stores only the changed blocks of large files
#: From which size of a file on it does so, and in blocks of which size: as pgBackRest itself would, but for files below
#: 1 MiB. A restore asks the store for each file with blocks by itself, and for all others of a bundle at once: a new
#: service's is 12 requests instead of 1,058. (The option is none that pgBackRest documents; one that a version does not
#: know is left out by it with a warning.)
_BLOCK_SIZES = (
    "1MiB=8KiB", "11MiB=16KiB", "43MiB=24KiB", "96MiB=32KiB", "146MiB=40KiB", "228MiB=48KiB", "329MiB=56KiB",
    "448MiB=64KiB", "585MiB=72KiB", "740MiB=80KiB", "914MiB=88KiB",
)  # fmt: skip
_Options = dict[str, str | int | tuple[str, ...]]  # several values of one are a line each
_BESIDE = 4  # processes of what works beside the service
_MOST = 999  # processes that it takes
_IO_TIMEOUT = 20  # seconds that a store may take for an answer, and that a request is tried again


@dataclass(frozen=True)
class Program:
    """An installed pgBackRest."""

    path: Path
    version: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a configuration applies: the cluster, its socket and port, and a directory for what is on its way.

    `repository` is the repository's directory; unused for S3. `config`: the directory of the configuration itself.
    """

    pgdata: Path
    run: Path
    port: int
    spool: Path
    config: Path
    repository: Path


@dataclass(frozen=True)
class Secrets:
    """The opened secrets of a `spec.Repository`."""

    cipher: str
    s3_key: str = ""
    s3_secret: str = ""


@dataclass(frozen=True)
class Info:
    """What is in a repository, the oldest backup first. `wal_first`, `wal_last`: of the newest archive, empty: none."""

    exists: bool
    backups: list[Backup]
    wal_first: str = ""
    wal_last: str = ""


def program(setting: str) -> Program | None:
    """The installed one: what the setting names, what install/ laid, or Debian's."""
    for path in [setting] if setting else _PLACES:
        if os.access(path, os.X_OK):
            asked = subprocess.run([path, "version"], capture_output=True, text=True, check=False)
            if found := re.search(r"pgBackRest (\d+)\.(\d+)(?:\.(\d+))?", asked.stdout):
                return Program(Path(path), tuple(int(part) for part in found.groups() if part))
    return None


def beside(cores: int) -> int:
    """With how many processes to archive and to back up: that goes on beside the service, which comes first."""
    return max(1, min(_BESIDE, cores))


def render(
    program: Program, repository: Repository, secrets: Secrets, place: Place, *, processes: int, queue: int = 0
) -> str:
    """The configuration file.

    `processes`: how many work at once; `queue`: bytes of segments that may wait before they are given up, 0: no limit.
    """
    options: _Options = {
        "repo1-cipher-type": "aes-256-cbc",
        "repo1-cipher-pass": secrets.cipher,
        "repo1-bundle": "y",
        "repo1-retention-full": 9999999,  # what to expire is decided by us, see `expire`
        "compress-type": "zst",
        "compress-level": 1,
        "process-max": max(1, min(_MOST, processes)),
        "archive-async": "y",
        "archive-timeout": 120,
        "io-timeout": _IO_TIMEOUT,
        "lock-path": f"{place.run}/pgbackrest",
        "spool-path": str(place.spool),
        "log-path": str(place.spool),
        "log-level-file": "off",
        "log-level-stderr": "off",
        "log-level-console": "warn",
        "log-timestamp": "n",
    }
    if program.version >= _BLOCKS:
        options |= {"repo1-block": "y", "repo1-block-size-map": _BLOCK_SIZES}
    if queue:
        options["archive-push-queue-max"] = queue
    options |= _storage(repository, secrets, place)
    cluster: _Options = {
        "pg1-path": str(place.pgdata),
        "pg1-socket-path": str(place.run),
        "pg1-port": place.port,
        "pg1-user": "postgres",
        "pg1-database": "postgres",
    }
    return _section("global", options) + _section(STANZA, cluster)


def _storage(repository: Repository, secrets: Secrets, place: Place) -> _Options:
    if repository.kind == "directory":
        return {"repo1-path": str(place.repository)}
    s3 = repository.s3
    if s3 is None:
        raise HostFault("A repository in S3 has no bucket.")
    host, _, port = s3.endpoint.removeprefix("https://").partition(":")
    options: _Options = {
        "repo1-type": "s3",
        "repo1-path": "/" + "/".join(part for part in (s3.prefix.strip("/"), repository.service_id) if part),
        "repo1-s3-endpoint": host,
        "repo1-s3-bucket": s3.bucket,
        "repo1-s3-region": s3.region,
        "repo1-s3-key": secrets.s3_key,
        "repo1-s3-key-secret": secrets.s3_secret,
        "repo1-s3-uri-style": "path" if s3.path_style else "host",
    }
    if port:
        options["repo1-storage-port"] = int(port)
    if s3.ca:
        options["repo1-storage-ca-file"] = str(place.config / CA)
    return options


def store_port(repository: Repository) -> int:
    """The port of the S3 server; 0: there is none."""
    if repository.s3 is None:
        return 0
    port = repository.s3.endpoint.removeprefix("https://").partition(":")[2]
    return int(port) if port.isdigit() else 443


def _section(name: str, options: _Options) -> str:
    lines = [f"[{name}]"]
    for key, given in options.items():
        for value in given if isinstance(given, tuple) else (str(given),):
            if "\n" in value or "\0" in value or value != value.strip() or not value:
                raise HostFault("A value cannot be written into pgBackRest's configuration.", detail=key)
            lines.append(f"{key}={value}")
    return "\n".join(lines) + "\n\n"


def render_push(program: Program, place: Place, *, queue: int = 0, waits: bool = True) -> str:
    """The script that PostgreSQL runs for each finished segment, with the segment's path as its argument.

    Until there is a repository segments wait, up to `queue` bytes (0: no limit) as later by pgBackRest; not `waits`:
    they are let go. One that is given up because too many wait is noted in a file beside those on their way, the name
    alone; where that cannot be, it waits on.
    """
    config, ready, spool = (
        shlex.quote(str(path)) for path in (place.config / CONFIG, place.config / READY, place.spool)
    )
    too_many = f'[ "$(ls "${{1%/*}}/archive_status" | grep -c \'[.]ready$\')" -gt {queue // SEGMENT_BYTES} ]'
    give_up = f'{too_many if queue else "false"} && note "$1" || exit 1\n  echo "dropped ${{1##*/}}: too many wait"\n'
    return (
        "#!/bin/sh\n# Written by pgherd; changes are overwritten.\n"
        f'note() {{ mkdir -p {spool} && cd {spool} && echo "${{1##*/}}" >given-up.new && mv given-up.new given-up; }}\n'
        f"if [ ! -e {ready} ]; then # the repository is not made yet\n  {give_up if waits else ''}  exit 0\nfi\n"
        f'said=$({shlex.quote(str(program.path))} --config={config} --stanza={STANZA} archive-push "$1" 2>&1)\n'
        "code=$?\n"
        '[ -z "$said" ] || printf \'%s\\n\' "$said" | cut -c -300\n'
        'case $said in *"dropped WAL file"*) note "$1" || exit 1 ;; esac\n'
        "exit $code\n"
    )


def archive_command(config: Path) -> str:
    """PostgreSQL's parameter. pgBackRest insists on finding its own name in it."""
    script = shlex.quote(str(config / PUSH)).replace("%", "%%")
    return f"/bin/sh {script} %p"


# --- commands: argument lists without secrets ----------------------------------------------------------------


def command(program: Program, config: Path, name: str, *options: str) -> list[str]:
    """One command with the configuration in the directory `config`."""
    return [str(program.path), f"--config={config / CONFIG}", f"--stanza={STANZA}", *options, name]


def push_rest(program: Program, config: Path, pgdata: Path) -> list[str]:
    """Push what a stopped cluster still has to archive, however much that is; ends at the first that does not go."""
    push = shlex.join(command(program, config, "archive-push", "--no-archive-async", "--reset-archive-push-queue-max"))
    script = (
        'cd "$1/pg_wal/archive_status" || exit 0; for ready in *.ready; do [ -e "$ready" ] || break;'
        f' {push} "$1/pg_wal/${{ready%.ready}}" || exit; mv "$ready" "${{ready%.ready}}.done"; done'
    )
    return ["/bin/sh", "-c", script, "sh", str(pgdata)]


def fetch(program: Program, config: Path, pgdata: Path) -> str:
    """PostgreSQL's `restore_command` for a cluster in `pgdata`.

    PostgreSQL takes every exit code up to 125 for the end of the archive, and pgBackRest ends with one of those when it
    fails. That there is no such segment is 1; anything else is tried again and then ends the recovery.
    """
    get = shlex.join(command(program, config, "archive-get", f"--pg1-path={pgdata}")).replace("%", "%%")
    return f'for pause in 1 2 4 0; do {get} "%f" "%p" && exit 0; [ $? -ne 1 ] || exit 1; sleep $pause; done; exit 255'


def stanza_create(program: Program, config: Path) -> list[str]:
    """Make the repository for the cluster that runs; nothing happens when it is there and the cluster's."""
    return command(program, config, "stanza-create")


def stanza_upgrade(program: Program, config: Path) -> list[str]:
    """Let the repository go on with the cluster after a major upgrade, or with another cluster in its place."""
    return command(program, config, "stanza-upgrade")


def backup(program: Program, config: Path, *, full: bool, fast: bool) -> list[str]:
    """Back up. `fast`: begin with a checkpoint at once instead of waiting for the next. Expires nothing."""
    options = [f"--type={'full' if full else 'incr'}", "--no-expire-auto", "--log-level-console=detail"]
    return command(program, config, "backup", *options, *(["--start-fast"] if fast else []))


def expire(program: Program, config: Path, *, fulls: int) -> list[str]:
    """Remove all but the newest `fulls` full backups, with what builds on the older ones and WAL that none needs."""
    return command(program, config, "expire", f"--repo1-retention-full={max(1, fulls)}")


def restore(
    program: Program,
    config: Path,
    *,
    backup: str = "",
    target: Sequence[str] = (),
    pgdata: Path | None = None,
    delta: bool = False,
    archive: bool = False,
    processes: int = 0,
) -> list[str]:
    """Restore into the configuration's PGDATA or into `pgdata`.

    `backup`: its label, else the newest that the target allows. `target`: options such as `--type=time`,
    `--target=...`; none: to the end of the archive. `delta`: keep what is there already and right. Without `archive`
    the restored cluster comes up with archiving off. `processes`: how many work at once; 0: as the configuration says.
    """
    options = [f"--set={backup}"] if backup else []
    options += [f"--pg1-path={pgdata}"] if pgdata else []
    options += ["--delta"] if delta else []
    options += [] if archive else ["--archive-mode=off"]
    options += [f"--process-max={min(_MOST, processes)}"] if processes else []
    return command(program, config, "restore", "--log-level-console=detail", *options, *target)


def verify(program: Program, config: Path) -> list[str]:
    """Read everything in the repository and compare checksums."""
    return command(program, config, "verify", "--output=text", "--log-level-console=detail")


def info(program: Program, config: Path) -> list[str]:
    """List what is in the repository, see `parse_info`."""
    return command(program, config, "info", "--output=json")


def stop(program: Program, config: Path) -> list[str]:
    """Forbid further work on the repository, which `stanza_delete` wants first."""
    return command(program, config, "stop", "--force")


def stanza_delete(program: Program, config: Path) -> list[str]:
    """Delete all that is in the repository."""
    return command(program, config, "stanza-delete", "--force")


# --- what it says --------------------------------------------------------------------------------------------


class _Timestamp(msgspec.Struct):
    start: int
    stop: int


class _Delta(msgspec.Struct):
    delta: int


class _Sizes(msgspec.Struct):
    size: int
    repository: _Delta


class _Wal(msgspec.Struct):
    start: str | None = None
    stop: str | None = None


class _Backup(msgspec.Struct):
    label: str
    timestamp: _Timestamp
    info: _Sizes
    archive: _Wal
    prior: str | None = None
    error: bool | None = None


class _Archive(msgspec.Struct):
    min: str | None = None
    max: str | None = None


class _Status(msgspec.Struct):
    code: int
    message: str = ""


class _Stanza(msgspec.Struct):
    name: str
    status: _Status
    archive: list[_Archive] = []
    backup: list[_Backup] = []


_NO_BACKUP = 2  # of `status.code`; 1: no such stanza; 3: no path
_LABEL = re.compile(r"\d{8}-\d{6}F(_\d{8}-\d{6}[DI])?")


def parse_info(text: str | bytes) -> Info:
    """Read the answer of `info`, written by a program that a tenant may own. Raises HostFault for anything else."""
    try:
        stanzas = msgspec.json.decode(text, type=list[_Stanza])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HostFault("pgBackRest gives a wrong answer.", detail=str(error)[:200]) from None
    found = next((stanza for stanza in stanzas if stanza.name == STANZA), None)
    if found is None or found.status.code not in (0, _NO_BACKUP):
        reason = found.status.message if found else "no such stanza"
        if found is None or found.status.code in (1, 3):
            return Info(False, [])
        raise HostFault("The repository cannot be read.", detail=reason[:200])
    backups = [_shown(backup) for backup in found.backup if _LABEL.fullmatch(backup.label)]
    newest = found.archive[-1] if found.archive else _Archive()
    return Info(True, sorted(backups, key=lambda b: b.ended_at), newest.min or "", newest.max or "")


def _shown(found: _Backup) -> Backup:
    return Backup(
        found.label, _time(found.timestamp.start), _time(found.timestamp.stop), max(0, found.info.size),
        max(0, found.info.repository.delta), (found.prior or "")[:64], bool(found.error),
        (found.archive.start or "")[:24], (found.archive.stop or "")[:24],
    )  # fmt: skip


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        raise HostFault("pgBackRest gives a wrong answer.", detail="a time out of range") from None


def progress(lines: Sequence[str]) -> float:
    """How far a command has come, 0 to 1, from its last words (log level detail)."""
    for line in reversed(lines):
        if found := re.search(r"[ (](\d{1,3}(?:\.\d+)?)%\)", line):
            return min(1.0, float(found[1]) / 100)
    return 0.0


def complaint(lines: Sequence[str]) -> str:
    """Why a command failed, in its own words without its hints; its last line when it gives no reason."""
    for number in range(len(lines) - 1, -1, -1):
        if found := re.search(r"\bERROR: (?:\[\d+\]: )?(.+)", lines[number]):
            more = [line.strip() for line in lines[number + 1 : number + 4]]
            more = more[: next((i for i, line in enumerate(more) if re.match(r"HINT|P\d\d ", line)), len(more))]
            return " ".join([found[1].strip(), *more])
    return lines[-1].strip() if lines else ""
