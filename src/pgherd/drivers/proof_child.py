"""Prove that a repository gives back what went into it; run by a bare Python under the service's own uid.

Not imported for what it does, but for its pure parts and its place: the program is this file. It restores the newest
backup into a throw-away directory, recovers it to the newest archived segment in a server that nobody can reach, and
looks at every page, table and index; it reads the whole repository; it reads every page of the living cluster. What
it finds it leaves as JSON in a file (`spec.Verification`). All else that it makes lies in two directories, which it
empties first and last.

Nothing of the tenant's runs as anything but the tenant: amcheck evaluates expressions of indexes as the owners of their
tables (PostgreSQL 13.7, 14.3 and later), and all of it has this uid, no way in, and for a directory's repository no way
out.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

_PORT = 1  # of the throw-away server: only a name, it listens on its socket alone
_RATE = "64M"  # bytes a second at most that are read of the living cluster
#: What wins over what a tenant has set for a database.
_OPTIONS = "-c search_path=pg_catalog -c role=none -c default_transaction_read_only=off -c jit=off -c lc_messages=C"
_MARGIN = 1 << 30  # bytes of disk beside the data itself: segments while it recovers
_MOST = 20  # problems that are told
_WORD = 300  # characters of one
#: Counts the rows of each table, from the table itself; a hypertable's are in its chunks. Runs nothing of a tenant's.
_COUNTING = r"""
set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;
select pg_catalog.format('select pg_catalog.count(*) from only %I.%I', n.nspname, c.relname) from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace join pg_catalog.pg_am a on a.oid = c.relam
 where c.relkind in ('r', 'm') and c.relispopulated and a.amname = 'heap' and c.relpersistence <> 't'
   and n.nspname not in ('pg_catalog', 'information_schema') order by c.oid \gexec
"""
SEGMENT = re.compile(r"\d+-\d+/[0-9A-F]{16}/([0-9A-F]{24})-[0-9a-f]{40}")


class Impossible(Exception):
    """The proof cannot be carried out, whatever the state of the repository."""


# --- pure ----------------------------------------------------------------------------------------------------


def number(segment: str, per_file: int = 256) -> tuple[int, int]:
    """Timeline and running number of a segment's name; `per_file`: segments in 4 GiB."""
    return int(segment[:8], 16), int(segment[8:16], 16) * per_file + int(segment[16:24], 16)


def name(timeline: int, running: int, per_file: int = 256) -> str:
    """The name of a segment."""
    return f"{timeline:08X}{running // per_file:08X}{running % per_file:08X}"


def moment(seconds: float) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def segments(listing: dict[str, Any]) -> dict[str, int]:
    """The archived segments with the time at which each arrived, from the answer of `repo-ls`."""
    found = {}
    for path, entry in listing.items():
        if (match := SEGMENT.match(path)) and entry.get("type") == "file":
            found[match[1]] = int(entry["time"])
    return found


def complaints(said: str) -> tuple[dict[str, str], dict[str, str]]:
    """What `verify` says is wrong: segments by name, backups by label."""
    bad_segments: dict[str, str] = {}
    bad_backups: dict[str, str] = {}
    for what, path in re.findall(r"(file missing|invalid checksum|invalid size|invalid result) '?([^\s':]+)", said):
        if match := SEGMENT.match(path):
            bad_segments[match[1]] = what
        elif match := re.match(r"(\d{8}-\d{6}F(?:_\d{8}-\d{6}[DI])?)/", path):
            bad_backups.setdefault(match[1], what)
    for label, status in re.findall(r"backup: (\S+), status: ([a-z ]+),", said):
        if status != "valid":
            bad_backups.setdefault(label, status)
    return bad_segments, bad_backups


def missing(found: dict[str, int], needed_from: str, per_file: int = 256) -> list[str]:
    """Segments that are not there between those that are, from the first that the oldest backup needs."""
    lines: dict[int, list[int]] = {}
    for segment in found:
        if segment >= needed_from:
            timeline, running = number(segment, per_file)
            lines.setdefault(timeline, []).append(running)
    gaps = []
    first, start = number(needed_from, per_file)
    for timeline, present in sorted(lines.items()):
        begin = start if timeline == first else min(present)
        gaps += [name(timeline, n, per_file) for n in sorted(set(range(begin, max(present))) - set(present))[:10000]]
    return gaps


def spans(backups: list[dict[str, Any]], bad_backups: set[str], found: dict[str, int], bad: list[str]) -> list[Any]:
    """From when to when each sound backup leads, with the archive behind it; seconds, the oldest first.

    `backups`: of `info`, the oldest first; `bad`: segments that are missing or damaged.
    """
    unsound: set[str] = set()
    result = []
    last = _end(backups, found)
    for backup in backups:
        start, stop = backup["archive"]["start"] or "", backup["archive"]["stop"] or ""
        broken = backup["label"] in bad_backups or bool(backup.get("error")) or backup.get("prior") in unsound
        if broken or any(start <= segment <= stop for segment in bad):
            unsound.add(backup["label"])
            continue
        ends = backup["timestamp"]["stop"]
        beyond = min((segment for segment in bad if segment > stop), default="")
        if beyond:
            before = [found[segment] for segment in found if stop <= segment < beyond and segment not in bad]
            result.append((ends, max([ends, *before])))
        else:
            result.append((ends, last))
    return result


def broken(backups: list[dict[str, Any]], reached: list[Any], found: dict[str, int]) -> list[tuple[int, int]]:
    """The times between the oldest backup and the newest segment that no sound backup leads to; seconds."""
    if not backups:
        return []
    at = backups[0]["timestamp"]["stop"]
    end = _end(backups, found)
    result = []
    for start, stop in sorted(reached):
        if start > at:
            result.append((at, start))
        at = max(at, stop)
    return [*result, (at, end)] if at < end else result


def _end(backups: list[dict[str, Any]], found: dict[str, int]) -> int:
    """Just after all that is in the repository; times there are whole seconds."""
    newest: int = max([0, *(backup["timestamp"]["stop"] for backup in backups), *found.values()])
    return newest + 1


# --- effects -------------------------------------------------------------------------------------------------


class Proof:
    """One run. `asked` is the agent's: directories, programs, settings; nothing secret."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.work, self.socket, self.bin = asked["work"], asked["socket"], asked["bin"]
        self.pgdata = os.path.join(self.work, "pgdata")
        self.problems: list[str] = []
        self.obstacles: list[str] = []
        self.found: dict[str, Any] = {"problems": self.problems, "broken": []}
        self.began = time.monotonic()

    def run(self) -> int:
        """All of it; the exit code."""
        self._clear()
        try:
            self._parts()
        finally:
            self._clear()
        self.found["seconds"] = round(time.monotonic() - self.began, 1)
        if self.obstacles:
            self.found["impossible"] = " ".join(self.obstacles)[:_WORD]
        del self.problems[_MOST:], self.found["broken"][_MOST:]
        self._leave()
        return 0

    def _parts(self) -> None:
        """One part that cannot be carried out neither hides what others find nor prevents them, as far as they can."""
        info: dict[str, Any] = {}
        with self._part(0.01, "looking"):
            info = self._info()
        if not info:
            return
        with self._part(0.02, "reading the repository"):
            self._repository(info)
        if not self.obstacles:  # of a repository that does not answer, a failing restore says nothing
            with self._part(0.3, "restoring"):
                if self._restored(info):
                    self._recovered(info)
        with self._part(0.85, "reading the living cluster"):
            self._living()

    @contextlib.contextmanager
    def _part(self, progress: float, what: str) -> Iterator[None]:
        self._step(progress, what)
        try:
            yield
        except Impossible as error:
            self.obstacles.append(str(error))
        except Exception as error:  # a full disk, an answer that nobody foresaw
            traceback.print_exc()
            words = error.strerror if isinstance(error, OSError) else str(error)
            self.obstacles.append(f"{what.capitalize()} failed: {type(error).__name__}: {words}.")

    def _leave(self) -> None:
        """Write down what was found, at once or not at all."""
        with open(self.asked["result"] + ".new", "w") as file:
            json.dump(self.found, file)
        os.rename(self.asked["result"] + ".new", self.asked["result"])

    # --- the repository ---

    def _pgbackrest(self, *words: str, check: bool = True) -> str:
        """What a command of pgBackRest prints. Raises Impossible with its complaint."""
        ended = self._call([*self.asked["pgbackrest"], *words])
        if check and ended.returncode != 0:
            raise Impossible(f"pgBackRest {words[-1]}: {_last(ended.stdout + ended.stderr)}")
        return ended.stdout if check else ended.stdout + ended.stderr

    def _info(self) -> dict[str, Any]:
        stanzas = json.loads(self._pgbackrest("--output=json", "info"))
        if not stanzas or not stanzas[0].get("backup"):
            raise Impossible("There is no backup yet that could be proven.")
        info: dict[str, Any] = stanzas[0]
        info["backup"].sort(key=lambda backup: backup["timestamp"]["stop"])
        newest = info["backup"][-1]
        self.found |= {"backup": newest["label"], "wal": (info["archive"] or [{}])[-1].get("max") or ""}
        return info

    def _repository(self, info: dict[str, Any]) -> None:
        """Every file of the repository is read and compared; what is missing or damaged is told with what it breaks."""
        listing = json.loads(self._pgbackrest("--recurse", "--output=json", "repo-ls", f"archive/{info['name']}"))
        words = ["--output=text", "--verbose", "--log-level-console=info", "--job-retry=1", "verify"]
        said = self._pgbackrest(*words, check=False)
        backups, there = info["backup"], segments(listing)
        oldest = min(backup["archive"]["start"] for backup in backups if backup["archive"]["start"])
        bad_segments, bad_backups = complaints(said)
        gone = missing(there, oldest)
        bad = sorted({*(s for s in bad_segments if s >= oldest), *gone})
        if "status: " not in said or ("status: error" in said and not bad_segments and not bad_backups):
            self._problem(f"The repository cannot be read in whole: {_last(said)}")
        for label, what in sorted(bad_backups.items()):
            self._problem(f"Backup {label} is damaged: {what}.")
        for segment in bad:
            self._problem(f"WAL segment {segment} is {'missing' if segment in gone else 'damaged'}.")
        for backup in backups:
            if backup.get("error"):
                self._problem(f"Backup {backup['label']} was taken of damaged pages.")
        reached = spans(backups, set(bad_backups), there, bad)
        self.found["broken"] = [{"start": moment(a), "end": moment(b)} for a, b in broken(backups, reached, there)]

    # --- the copy ---

    def _restored(self, info: dict[str, Any]) -> bool:
        need = info["backup"][-1]["info"]["size"] * 11 // 10 + _MARGIN
        free = max(0, _free(self.work) - self.asked["reserve"])
        if free < need:
            raise Impossible(
                f"Not enough disk to restore: {need >> 20} MiB are needed, {free >> 20} MiB are free above what is kept"
                " for the services."
            )
        os.makedirs(self.pgdata, 0o700)
        label = info["backup"][-1]["label"]
        # A restore empties the spool; in the living server's its archiver may wait for an answer.
        apart = [f"--spool-path={self.work}/spool", f"--lock-path={self.work}/lock"]
        words = [f"--set={label}", f"--pg1-path={self.pgdata}", "--archive-mode=off", "--job-retry=1", *apart]
        ended = self._call([*self.asked["pgbackrest"], *words, "restore"])
        if ended.returncode != 0:
            self._problem(f"Backup {label} cannot be restored: {_last(ended.stdout + ended.stderr)}")
        return ended.returncode == 0

    def _recovered(self, info: dict[str, Any]) -> None:
        """The copy recovers to the end of the archive, and every page, table and index in it is sound."""
        self._step(0.5, "recovering")
        log = os.path.join(self.work, "log")
        with open(log, "wb") as output:
            server = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", f"{self.bin}/postgres", "-D", self.pgdata, *self._options()],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, close_fds=False,
            )  # fmt: skip
        try:
            if not self._ready(server):
                self._problem(f"The restored cluster does not recover: {_last(_read(log))}")
                return
            self._reached(info)
            self._step(0.6, "checking tables and indexes")
            self._checked()
            self._counted()
        finally:
            with contextlib.suppress(OSError):
                self._call([f"{self.bin}/pg_ctl", "stop", "-D", self.pgdata, "-m", "fast", "-t", "600"])
            if server.poll() is None:
                server.kill()
            server.wait()
        self._step(0.8, "checking pages")
        ended = self._call([f"{self.bin}/pg_checksums", "--check", "-D", self.pgdata])
        if ended.returncode != 0:
            self._problem(f"The restored cluster has damaged pages: {_last(ended.stderr + ended.stdout)}")

    def _options(self) -> list[str]:
        """A server that only recovers: reached by this user on its socket alone, and that starts nothing else."""
        user = pwd.getpwuid(os.getuid()).pw_name
        files = {
            "postgresql.conf": "",
            "pg_hba.conf": "local all postgres peer map=proof\nlocal all,replication all reject\n",
            "pg_ident.conf": f'proof "{user}" postgres\n',
        }
        for file, text in files.items():
            with open(os.path.join(self.work, file), "w") as opened:
                opened.write(text)
        os.makedirs(self.socket, 0o700)
        # One after the other: who fetches ahead keeps those out that push, and outlives what it was for.
        fetch = shlex.join(
            [*self.asked["pgbackrest"], "--no-archive-async", f"--pg1-path={self.pgdata}", "archive-get"]
        )
        values = {
            "config_file": f"{self.work}/postgresql.conf", "hba_file": f"{self.work}/pg_hba.conf",
            "ident_file": f"{self.work}/pg_ident.conf", "listen_addresses": "", "port": _PORT,
            "unix_socket_directories": self.socket, "archive_mode": "off", "archive_command": "/bin/false",
            "restore_command": f'{fetch.replace("%", "%%")} %f "%p"',
            "hot_standby": "off", "recovery_target_timeline": "latest", "autovacuum": "off", "fsync": "off",
            "full_page_writes": "off", "shared_preload_libraries": "", "session_preload_libraries": "",
            "local_preload_libraries": "", "max_logical_replication_workers": 0, "max_parallel_workers": 0,
            "max_connections": 20, "max_wal_senders": 0, "shared_buffers": "32MB", "maintenance_work_mem": "64MB",
            "jit": "off", "ssl": "off", "logging_collector": "off", "log_destination": "stderr",
            "primary_conninfo": "", "restart_after_crash": "off",
        } | self.asked["settings"]  # fmt: skip
        return [word for key, value in values.items() for word in ("-c", f"{key}={value}")]

    def _ready(self, server: subprocess.Popen[bytes]) -> bool:
        """Wait until the server has recovered; False when it ended instead. The job's own deadline bounds it."""
        while server.poll() is None:
            lines = _read(os.path.join(self.pgdata, "postmaster.pid")).splitlines()
            if len(lines) > 7 and lines[7].strip() == "ready":
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.1)
        return False

    def _reached(self, info: dict[str, Any]) -> None:
        asked = (
            "select json_build_object('lsn', pg_last_wal_replay_lsn(), 'at', pg_last_xact_replay_timestamp(),"
            " 'bytes', pg_last_wal_replay_lsn() - '0/0', 'size', pg_size_bytes(current_setting('wal_segment_size')))"
        )
        seen = json.loads(self._psql("postgres", asked) or "{}")
        if not seen.get("lsn"):
            self._problem("The restored cluster does not say how far it has recovered.")
            return
        self.found["lsn"] = seen["lsn"]
        if seen["at"]:
            self.found["recovered_to"] = moment(datetime.fromisoformat(seen["at"]).timestamp())
        last = self.found["wal"]
        if last and (int(seen["bytes"]) - 1) // int(seen["size"]) < number(last, (1 << 32) // int(seen["size"]))[1]:
            self._problem(f"Recovery ends at {seen['lsn']}, before the newest archived WAL segment, {last}.")

    def _checked(self) -> None:
        """Every table and B-tree index of every database, the indexes with the heap behind them."""
        amcheck = f"{self.bin}/pg_amcheck"
        if not os.access(amcheck, os.X_OK):
            raise Impossible("pg_amcheck is not installed with this PostgreSQL.")
        words = [amcheck, "--all", "--install-missing", "--heapallindexed", *self._door()]
        ended = self._call(words, env={"PGOPTIONS": f"{_OPTIONS} -c statement_timeout=1h -c lock_timeout=5s"})
        if ended.returncode != 0:
            lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
            for line in lines[:3] or ["no reason given"]:
                self._problem(f"Checking the restored tables and indexes: {line.strip()}")

    def _counted(self) -> None:
        databases = self._psql("postgres", "select datname from pg_database where datallowconn order by 1").splitlines()
        counts = [int(line) for database in databases for line in self._psql(database, _COUNTING).splitlines()]
        self.found |= {"databases": len(databases), "tables": len(counts), "rows": sum(counts)}

    # --- the living cluster ---

    def _living(self) -> None:
        """Every page of the cluster that runs, as the server itself reads and checks it; nothing is written."""
        control = self._call([f"{self.bin}/pg_controldata", "-D", self.asked["live_pgdata"]])
        if control.returncode != 0 or "CRC checksum does not match" in control.stdout + control.stderr:
            self._problem("The living cluster's control file is damaged.")
        words = [f"{self.bin}/pg_basebackup", "-D", "-", "-F", "t", "-X", "none", "--no-manifest", "-w"]
        words += ["-c", "spread" if self.asked["scheduled"] else "fast", "--max-rate", _RATE]
        words += ["-h", self.asked["live"], "-p", str(self.asked["port"]), "-U", "postgres"]
        ended = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            errors="replace", check=False, close_fds=False,
        )  # fmt: skip
        failed = [line for line in ended.stderr.splitlines() if "checksum verification failed" in line]
        for line in failed[:3]:
            self._problem(f"The living cluster has a damaged page: {line.split('WARNING:')[-1].strip()}")
        if ended.returncode != 0 and not failed:
            raise Impossible(f"The living cluster cannot be read: {_last(ended.stderr)}")

    # --- small things ---

    def _door(self) -> list[str]:
        return ["-h", self.socket, "-p", str(_PORT), "-U", "postgres", "-w"]

    def _psql(self, database: str, query: str) -> str:
        # What a statement may take is what the job may; one that fails keeps no other from being run.
        env = {"PGDATABASE": database, "PGOPTIONS": f"{_OPTIONS} -c statement_timeout=0"}
        ended = self._call([f"{self.bin}/psql", "-XqAt", *self._door()], env=env, text=query)
        if ended.returncode != 0 or "ERROR: " in ended.stderr:
            self._problem(f"The restored database {database}: {_last(ended.stderr)}")
        return ended.stdout.strip()

    def _call(
        self, argv: list[str], env: dict[str, str] | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, input=text, capture_output=True, text=True, errors="replace", check=False,
            close_fds=False, env={**os.environ, **(env or {})},
        )  # fmt: skip

    def _step(self, progress: float, what: str) -> None:
        print(f"progress {progress} {what}", flush=True)

    def _problem(self, text: str) -> None:
        self.problems.append(re.sub(r"\s+", " ", text)[:_WORD])

    def _clear(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.asked["result"])
        for directory in (self.work, self.socket):
            shutil.rmtree(directory, ignore_errors=True)


def _free(directory: str) -> int:
    status = os.statvfs(os.path.dirname(directory))
    return status.f_bavail * status.f_frsize


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _last(said: str) -> str:
    """The line that says why: the last error, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"ERROR|FATAL|PANIC|error:", line)]
    return (errors or lines or ["no reason given"])[-1][:_WORD]


def main() -> int:
    """Carry out what the one argument asks for."""
    return Proof(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    sys.exit(main())
