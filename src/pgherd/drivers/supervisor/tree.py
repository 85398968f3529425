"""s6: one scan directory a host, one service directory a process, one s6-log a service.

Killed supervisors must not hurt a service: `run` takes a lock that all its children inherit, so a second
copy waits for a living old one; output goes through a named fifo that both ends hold open for reading and
writing, so a dead logger gives no EPIPE. `finish` clears what the main process left behind, unless the main
process of an older copy still lives. Everything here lies in directories that only the supervising user
can write; a service's process is signalled under the service's own uid.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pgherd.drivers.supervisor import processes
from pgherd.drivers.supervisor.service import Service, render
from pgherd.errors import HostFault

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,100}")
_MOST_SERVICES = "4000"
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class State:
    """`since`: seconds since it went up or down; `deaths`: how often it ended within the last seconds before that;
    `waiting`: an older copy lives."""

    up: bool
    wanted: bool
    pid: int
    since: int
    deaths: int
    waiting: bool


class Supervisor:
    """The supervision tree under `scan`; logs go to `logs`/<service>/, written by `log_user` (root only)."""

    def __init__(self, scan: Path, logs: Path, log_user: str | None = None) -> None:
        self._scan = scan.absolute()
        self._logs = logs.absolute()
        self._rooted = os.geteuid() == 0
        self._log_user = log_user if self._rooted else None

    # --- the scanner ---------------------------------------------------------------------------------------

    def scanner_alive(self) -> bool:
        """Whether an s6-svscan serves this directory."""
        return processes.listens(self._scan / ".s6-svscan" / "control")

    def ensure_scanner(self) -> bool:
        """Start s6-svscan, detached, unless one lives; returns whether it did. Several may call it at once."""
        self._scan.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._logs.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._exclusive():
            if self.scanner_alive():
                return False
            self._dismiss_orphans()
            with open(self._scan / ".s6-svscan.log", "ab") as log:
                subprocess.run(
                    ["setsid", "--fork", "s6-svscan", "-c", _MOST_SERVICES, str(self._scan)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=_ENVIRONMENT, cwd="/", umask=0o022, check=True,
                )  # fmt: skip
            processes.until(self.scanner_alive, 10, "s6-svscan does not start")
            return True

    def stop_scanner(self, first: Sequence[str] = (), last: Sequence[str] = (), wait: float = 90) -> None:
        """Stop every service (`first` in their order, the rest at once, `last` in their order), then the scanner.

        What runs again at the next start of the scanner is not changed.
        """
        if not self.scanner_alive():
            self.ensure_scanner_quietly()
        names = self.names()
        for name in [n for n in first if n in names]:
            self._stop(name, wait)
        rest = [n for n in names if n not in first and n not in last]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self._stop(name, wait), rest))
        for name in [n for n in last if n in names]:
            self._stop(name, wait)
        for name in names:
            self._svc("-xd", self._scan / name / "log")
        subprocess.run(["s6-svscanctl", "-q", str(self._scan)], check=False, capture_output=True)
        processes.until(lambda: not self.scanner_alive(), wait, "s6-svscan does not stop")
        self._dismiss_orphans()
        for name in names:
            self._clear_holders(self._scan / name / "log", 0)

    def ensure_scanner_quietly(self) -> None:
        """Start the scanner with nothing started under it, so that leftovers of a killed one can be stopped."""
        held = [self._scan / n / "down" for n in self.names() if not (self._scan / n / "down").exists()]
        for path in held:
            path.touch()
        try:
            self.ensure_scanner()
            self.scan()
        finally:
            for path in held:
                path.unlink(missing_ok=True)

    # --- service directories -------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The services that are written here."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(p.name for p in self._scan.iterdir() if _NAME.fullmatch(p.name) and (p / "run").exists())
        return []

    def write(self, name: str, service: Service) -> bool:
        """Write the directory of a service; returns whether anything changed. It counts from the next start on."""
        if not _NAME.fullmatch(name):
            raise HostFault("A service's name is not acceptable.", detail=name)
        self._ensure_log_directory(name)
        target = self._scan / name
        files = render(target, self._logs / name, service, service.user if self._rooted else None, self._log_user)
        if (target / "run").exists():
            changed = [_replace(target / path, text, mode) for path, (text, mode) in files.items()]
            return any(changed)
        aside = self._scan / f".new-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "log").mkdir(parents=True, mode=0o700)
        for path, (text, mode) in files.items():
            _replace(aside / path, text, mode)
        os.mkfifo(aside / "output", 0o600)
        for lock in ("lock", "log/lock"):
            (aside / lock).touch(mode=0o600)
        if not service.start:
            (aside / "down").touch()
        aside.chmod(0o700)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        return True

    def scan(self, wait: float = 10) -> None:
        """Let the scanner find new directories and wait until each has a supervisor that listens."""
        for name in self.names():
            self._ensure_supervised(name, wait)

    def remove(self, name: str, wait: float = 30, *, gently: bool = True) -> None:
        """Stop a service for good and delete its directory and its logs; nothing happens when it is not there.

        Not `gently`: by SIGKILL at once.
        """
        target, aside = self._scan / name, self._scan / f".old-{name}"
        if target.exists():
            (target / "down").touch()
            self._stop(name, wait, "-d" if gently else "-dk")
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        if aside.exists():
            for part in (aside, aside / "log"):
                self._svc("-xd", part)
            subprocess.run(["s6-svscanctl", "-an", str(self._scan)], check=False, capture_output=True)
            for part in (aside, aside / "log"):
                _until_gone(part / "supervise" / "control", wait)
            self._clear_holders(aside, wait)
            self._clear_holders(aside / "log", 0)
            shutil.rmtree(aside)
        shutil.rmtree(self._scan / f".new-{name}", ignore_errors=True)
        shutil.rmtree(self._logs / name, ignore_errors=True)

    def mark_all_down(self, prefix: str) -> None:
        """Let no service whose name begins with `prefix` start with the scanner; `up` starts it later."""
        for name in self.names():
            if name.startswith(prefix):
                (self._scan / name / "down").touch()

    # --- services ------------------------------------------------------------------------------------------

    def up(self, name: str) -> None:
        """Start a service and keep it running; forgets earlier deaths."""
        self._ensure_supervised(name)
        directory = self._scan / name
        (directory / "down").unlink(missing_ok=True)
        if not self._wants_up(directory):
            subprocess.run(["s6-svdt-clear", str(directory)], check=False, capture_output=True)
        if not self._svc("-u", directory):
            raise HostFault(f"s6 does not start {name}.")

    def once(self, name: str, record: Path, wait: float = 10) -> None:
        """Start a service whose end is its end; neither s6 nor a new scanner starts it again. See `Service.record`.

        Returns when it runs or has run: what an earlier run left may still be ended meanwhile. Raises HostFault.
        """
        self._ensure_supervised(name)
        directory = self._scan / name
        if not self._svc("-o", directory):
            raise HostFault(f"s6 does not start {name}.")
        processes.until(lambda: self.lives(name) or record.exists(), wait, f"{name} does not start")

    def down(self, name: str, wait: float = 90) -> None:
        """Stop a service, an older copy that outlived its supervisor too; it stays down until `up`.

        SIGKILL follows after the service's `kill_after_ms`, which `wait`, in seconds, has to outlast. Raises HostFault
        when it lives on then.
        """
        if not (self._scan / name / "run").exists():
            return
        (self._scan / name / "down").touch()
        self._ensure_supervised(name)
        self._stop(name, wait)

    def restart(self, name: str, wait: float = 90) -> None:
        """Stop a service and start it again."""
        self._ensure_supervised(name)
        self._stop(name, wait)
        self.up(name)

    def kill(self, name: str) -> None:
        """SIGKILL a service's main process and all that it left; s6 starts it again when it is wanted up."""
        self._svc("-k", self._scan / name)
        self._clear_holders(self._scan / name, 0)

    def state(self, name: str) -> State:
        """What s6 knows of a service; a service without a living supervisor is down."""
        directory = self._scan / name
        fields = ["s6-svstat", "-o", "up,wantedup,pid,updownfor", str(directory)]
        shown = subprocess.run(fields, capture_output=True, text=True, check=False)
        words = shown.stdout.split()
        if shown.returncode != 0 or len(words) != 4:
            return State(False, False, 0, 0, 0, False)
        deaths = subprocess.run(["s6-svdt", "-n", "16", str(directory)], capture_output=True, text=True, check=False)
        up, pid = words[0] == "true", int(words[2])
        return State(
            up=up, wanted=words[1] == "true", pid=max(pid, 0), since=int(words[3]),
            deaths=_recent(deaths.stdout), waiting=up and self._waits(directory, pid),
        )  # fmt: skip

    def changed_at(self, name: str) -> int:
        """When the supervisor last saw the process start or end, in nanoseconds; 0: never. Costs one look at a file."""
        try:
            return os.stat(self._scan / name / "supervise/status").st_mtime_ns
        except OSError:
            return 0

    def lives(self, name: str) -> bool:
        """Whether the service's process, an older copy of it or a child of either lives, supervised or not."""
        return not processes.lock_free(self._scan / name / "lock")

    def free_stale_lock(self, name: str) -> None:
        """End what an older copy's dead main process left, so that the copy which waits for the lock can go on."""
        directory = self._scan / name
        for _ in range(2):  # twice: a main process that has just got the lock is about to write its pid
            main = processes.read(directory / "holder").strip()
            alive = main.isdigit() and processes.holds(int(main), directory / "lock")
            if alive or processes.lock_free(directory / "lock"):
                return
            time.sleep(0.05)
        waiting = self.state(name).pid
        left = [pid for pid in processes.holders(directory / "lock") if pid != waiting]
        processes.signal(left, "SIGKILL", processes.read(directory / "user").strip() or None)

    def last_lines(self, name: str, size: int = 16384) -> list[str]:
        """The last lines of a service's log, from at most `size` bytes, without s6-log's time stamps."""
        try:
            descriptor = os.open(self._logs / name / "current", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        with open(descriptor, "rb") as file:
            file.seek(max(0, os.fstat(descriptor).st_size - size))
            return file.read(size).decode(errors="replace").splitlines()

    # --- inside --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        descriptor = os.open(self._scan / ".start-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _dismiss_orphans(self) -> None:
        """SIGQUIT makes s6-supervise go without touching its service; the new supervisor's `run` waits for that one."""

        def orphans() -> list[int]:
            found = processes.running("s6-supervise")
            return [pid for pid, cwd in found if cwd == self._scan or self._scan in cwd.parents]

        for pid in orphans():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        processes.until(lambda: not orphans(), 5, "orphans of s6-supervise do not go")

    def _ensure_log_directory(self, name: str) -> None:
        directory = self._logs / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._log_user:
            user = pwd.getpwnam(self._log_user)
            os.chown(directory, user.pw_uid, user.pw_gid, follow_symlinks=False)

    def _ensure_supervised(self, name: str, wait: float = 10) -> None:
        """Wait until s6-supervise of this service listens; a scanner that dies meanwhile is started again."""
        control = self._scan / name / "supervise" / "control"
        deadline = time.monotonic() + wait
        while not processes.listens(control):
            if time.monotonic() > deadline:
                raise HostFault(f"s6-supervise of {name} does not start within {wait:g} s.")
            self.ensure_scanner()
            subprocess.run(["s6-svscanctl", "-a", str(self._scan)], check=False, capture_output=True)
            with contextlib.suppress(HostFault):
                processes.until(lambda: processes.listens(control), 0.5, "")

    def _wants_up(self, directory: Path) -> bool | None:
        """Whether the supervisor is to keep it up; None: there is no supervisor."""
        shown = subprocess.run(["s6-svstat", "-o", "wantedup", str(directory)], capture_output=True, check=False)
        return {b"true": True, b"false": False}.get(shown.stdout.strip())

    def _svc(self, option: str, directory: Path) -> bool:
        return subprocess.run(["s6-svc", option, str(directory)], check=False, capture_output=True).returncode == 0

    def _stop(self, name: str, wait: float, how: str = "-d") -> None:
        directory = self._scan / name
        deadline = time.monotonic() + wait
        alive = self._svc(how, directory)
        # In slices: a supervisor that is killed meanwhile tells nobody, and its successor must be told again. One that
        # was told already must not be: it would begin anew to count the time until SIGKILL.
        while alive:
            arguments = ["s6-svwait", "-D", "-t", "1000", str(directory)]
            if subprocess.run(arguments, check=False, capture_output=True).returncode == 0:
                break
            if self._wants_up(directory) is not False:
                alive = self._svc(how, directory)
            if time.monotonic() > deadline:
                raise HostFault(f"{name} does not stop within {wait:g} s.")
        self._clear_holders(directory, wait if how == "-d" else 0)

    def _clear_holders(self, directory: Path, wait: float) -> None:
        """Stop the older copy that holds the lock: its main process by the down-signal, in the end all by SIGKILL."""
        if processes.lock_free(directory / "lock"):
            return
        user = processes.read(directory / "user").strip() or None
        main = processes.read(directory / "holder").strip()
        if main.isdigit() and wait > 0 and processes.holds(int(main), directory / "lock"):
            grace = min(wait, int(processes.read(directory / "timeout-kill").strip() or 0) / 1000)
            processes.signal([int(main)], processes.read(directory / "down-signal").strip() or "SIGTERM", user)
            with contextlib.suppress(HostFault):
                processes.until(lambda: processes.lock_free(directory / "lock"), grace, "")
        if not processes.lock_free(directory / "lock"):
            processes.signal(processes.holders(directory / "lock"), "SIGKILL", user)
            processes.until(lambda: processes.lock_free(directory / "lock"), 5, f"{directory.name} cannot be killed")

    def _waits(self, directory: Path, pid: int) -> bool:
        """Whether the process of `run` has not got the lock (yet)."""
        return processes.read(directory / "holder").strip() != str(pid) and not processes.lock_free(directory / "lock")


def _replace(path: Path, text: str, mode: int) -> bool:
    if path.exists() and path.read_text() == text:
        return False
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    aside.chmod(mode)
    aside.rename(path)
    return True


def _until_gone(control: Path, seconds: float) -> None:
    processes.until(lambda: not processes.listens(control), seconds, "an s6-supervise does not end")


def _recent(deaths: str) -> int:
    """How many of s6-svdt's lines (time stamps in TAI64N) are of the last 30 s before the newest."""
    seconds = [int(line[1:17], 16) for line in deaths.splitlines() if re.match(r"@[0-9a-f]{24} ", line)]
    return sum(second > max(seconds) - 30 for second in seconds)
