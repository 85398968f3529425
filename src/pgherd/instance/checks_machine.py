"""`pgherd doctor`: what the machine must have, whether an instance runs or not."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pgherd.drivers import exporter, pgbackrest, pgbouncer, postgres
from pgherd.errors import PgherdError
from pgherd.home import Home
from pgherd.instance.accounts import accounts, ids
from pgherd.instance.findings import Finding
from pgherd.instance.programs import postgres_directories, postgres_directory
from pgherd.model import minors
from pgherd.settings import Settings

_INSTALL = "Run `sudo sh install/debian.sh` in the checkout, or `make up` as root."
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = {
    "s6": ("s6-svscan", "s6-supervise", "s6-svc", "s6-log", "s6-svstat"),
    "util-linux": ("flock", "setpriv", "setsid"),
}
_GIB = 1024**3


def privileges() -> Iterator[Finding]:
    """Root or not, and what is off without."""
    if os.geteuid() == 0:
        missing = [name for name in vars(accounts()).values() if not _user_exists(name)]
        if missing:
            yield Finding("note", "users", f"not made yet: {', '.join(missing)}", "`make up` makes them.")
        else:
            yield Finding("ok", "users", "root; every service gets an OS user of its own")
        return
    yield Finding(
        "warning",
        "users",
        "not root, so these protections are off: an OS user for each service (a service's PostgreSQL can read the files"
        " of the others and of pgherd, the operator's key too), unprivileged users for API and metadata, root-owned"
        " releases, memory priorities, the firewall, limits of memory and processes",
        "Fine for one person's own databases. With tenants who do not trust each other, run `make up` as root.",
    )


def _user_exists(name: str) -> bool:
    try:
        ids(name)
    except KeyError:
        return False
    return True


def programs(settings: Settings) -> Iterator[Finding]:
    """Binaries and their versions."""
    for package, names in _PROGRAMS.items():
        missing = [name for name in names if not shutil.which(name, path=_PATH)]
        if missing:
            yield Finding("broken", package, f"missing programs: {', '.join(missing)}", _INSTALL)
        else:
            yield Finding("ok", package, "programs found")
    if "--no-fork" not in _output("flock", "--help"):
        yield Finding("broken", "util-linux", "flock has no --no-fork", "Install util-linux 2.34 or newer.")
    try:
        directory = postgres_directory(settings, settings.default_version)
    except PgherdError as error:
        others = postgres_directories(settings)
        todo = "Or set default_version to an installed one." if others else _INSTALL
        yield Finding("broken", "postgresql", str(error), todo)
        return
    for major, found in sorted(postgres_directories(settings).items()):
        absent = [n for n in ("initdb", "psql", "pg_ctl", "pg_isready", "pg_basebackup") if not (found / n).exists()]
        if absent:
            yield Finding("broken", f"postgresql {major}", f"missing in {found}: {', '.join(absent)}", _INSTALL)
        else:
            shown = _output(str(found / "postgres"), "--version")
            note = " (default for new services)" if found == directory else ""
            yield _patched(major, found, shown.strip() + note)


def _patched(major: str, directory: Path, seen: str) -> Finding:
    """Whether a PostgreSQL has all security fixes that are known here (docs/decisions/0008)."""
    what, version = f"postgresql {major}", re.search(r"\d+\.\d+", seen)
    lacks = minors.lacking(version[0]) if version else []
    if not lacks:
        return Finding("ok", what, seen)
    if lacks == ["all"]:
        return Finding(
            "warning", what, f"{seen}: gets no security fixes any more", "Upgrade its services to a newer major."
        )
    fixes = "; ".join(f"{month}: {minors.WHY[month]}" for month in lacks)
    newest, package = minors.newest(int(major)), directory.is_relative_to("/usr/lib/postgresql")
    if version and version[0] == newest:
        todo = f"No {major} that has them is known here; look for one after {newest}."
    elif package:
        todo = f"Have {newest} or newer: apt-get update && apt-get install --only-upgrade postgresql-{major}"
    else:
        todo = f"Have {newest} or newer: delete the directory of the major, then sh install/postgresql.sh {major}"
    if version and version[0] != newest:
        todo += "; then `pgherd restart`. Services take it at their next restart."
    return Finding("warning", what, f"{seen}: lacks the security fixes of {fixes}", todo)


def guards(settings: Settings) -> Iterator[Finding]:
    """Whether new services of every major get the extension `pgherd`, whose event triggers hold tenants to the list."""
    try:
        found = postgres_directories(settings)
    except PgherdError:
        return  # `programs` says so
    known = postgres.programs(",".join(f"{major}={place}" for major, place in found.items())) if found else {}
    for major, program in sorted(known.items()):
        if program.own_extension:
            yield Finding("ok", f"guards {major}", f"extension pgherd {program.own_extension}")
            continue
        seen = "no extension pgherd: tenants create every trusted extension, in any schema,"
        seen += " and have no publication of all tables and no subscription"
        if int(major) < postgres.OLDEST_GUARDED:
            todo = f"PostgreSQL {major} cannot have it; take {postgres.OLDEST_GUARDED} or newer."
        elif settings.postgres_bindirs:
            todo = f"Copy the checkout's install/postgresql/pgherd* to {program.control_files}; then `pgherd restart`."
        else:
            todo = f"{_INSTALL} Then `pgherd restart`."
        yield Finding("warning", f"guards {major}", seen, f"{todo} Services that are there do not get it.")


def pooler(settings: Settings) -> Iterator[Finding]:
    """What serves the pools; services run without it."""
    found = pgbouncer.program(settings.pgbouncer)
    if found is not None and found.serves:
        yield Finding("ok", "pgbouncer", f"{found.version} ({found.path})")
        return
    oldest = ".".join(map(str, pgbouncer.OLDEST))
    seen = f"{found.version} at {found.path} is older than {oldest}" if found else "not installed"
    todo = "Run `sudo sh install/pgbouncer.sh` in the checkout, or name a newer one in the setting pgbouncer."
    yield Finding("warning", "pgbouncer", f"{seen}; services cannot have connection pools", todo)


def monitoring(settings: Settings) -> Iterator[Finding]:
    """The exporter that tells Prometheus of services."""
    found = exporter.program(settings.exporter)
    if found is not None:
        yield Finding("ok", "exporter", f"postgres_exporter {found.version} ({found.path})")
        return
    todo = f"{_INSTALL} Or name one in the setting exporter."
    yield Finding("warning", "exporter", "not installed; services have no endpoint for Prometheus", todo)


def archiver(settings: Settings) -> Iterator[Finding]:
    """What archives and backs up; services run without it."""
    found = pgbackrest.program(settings.pgbackrest)
    if found is not None:
        yield Finding("ok", "pgbackrest", f"{'.'.join(map(str, found.version))} ({found.path})")
        return
    todo = "Run `sudo sh install/pgbackrest.sh` in the checkout, or name one in the setting pgbackrest."
    yield Finding("warning", "pgbackrest", "not installed; services have no backups", todo)


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def locale() -> Iterator[Finding]:
    """The locale that services are made with."""
    shown = _output("locale", "-a")
    if re.search(r"^en_US\.utf-?8$", shown, re.IGNORECASE | re.MULTILINE):
        yield Finding("ok", "locale", "en_US.UTF-8")
    else:
        yield Finding("broken", "locale", "en_US.UTF-8 is missing; services do not start without it", _INSTALL)


def clock(home: Home) -> Iterator[Finding]:
    """Signatures expire and certificates begin by the clock."""
    known = max([p.stat().st_mtime for p in (home.current, home.credentials) if p.exists()], default=1_750_000_000.0)
    if time.time() < known - 60:
        yield Finding(
            "broken",
            "clock",
            f"shows {time.ctime()}, before this instance was set up",
            "Set the clock; signatures and certificates depend on it.",
        )
    else:
        yield Finding("ok", "clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def disk(home: Home) -> Iterator[Finding]:
    """Space where the data lies."""
    place = next(p for p in (home.root, *home.root.parents) if p.exists())
    usage, inodes = shutil.disk_usage(place), os.statvfs(place)
    seen = f"{usage.free / _GIB:.1f} GiB of {usage.total / _GIB:.1f} GiB free under {home.root}"
    if usage.free < _GIB or (inodes.f_files and inodes.f_favail < 10_000):
        yield Finding("broken", "disk", seen, "Free some space, or move the home directory (PGHERD_HOME).")
    elif usage.free < max(5 * _GIB, usage.total // 10):
        yield Finding("warning", "disk", seen, "An idle service takes about 60 MiB, its WAL up to 1 GiB when busy.")
    else:
        yield Finding("ok", "disk", seen)


def paths(home: Home) -> Iterator[Finding]:
    """Services' users must be able to pass every directory above theirs."""
    closed = [p for p in (home.root, *home.root.parents) if p.exists() and not p.stat().st_mode & stat.S_IXOTH]
    if os.geteuid() == 0 and closed:
        yield Finding("broken", "home", f"other users may not pass {closed[0]}", f"Run: chmod o+x {closed[0]}")


def ports(settings: Settings, ours: set[int]) -> Iterator[Finding]:
    """Other programs that listen in the range of the services."""
    first, last = settings.port_range
    foreign = sorted(p for p in listening_ports() if first <= p <= last and p not in ours)
    if foreign:
        shown = ", ".join(map(str, foreign[:10])) + (" …" if len(foreign) > 10 else "")
        yield Finding(
            "note",
            "service ports",
            f"other programs listen in {first}-{last}: {shown}",
            "New services avoid them; setting service_ports chooses another range.",
        )
    else:
        yield Finding("ok", "service ports", f"{first}-{last}")
    low = _first_ephemeral()
    if low is not None and low <= last:
        yield Finding(
            "warning",
            "service ports",
            f"outgoing connections get ports from {low} on, which meets this range",
            "Set net.ipv4.ip_local_port_range to begin at 32768, or lower service_ports.",
        )


def _first_ephemeral() -> int | None:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return None


def listening_ports() -> set[int]:
    """TCP ports on which something listens on this machine."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == "0A":
                found.add(int(words[1].rpartition(":")[2], 16))
    return found


def hostname(settings: Settings) -> Iterator[Finding]:
    """Clients look the advertised name up."""
    try:
        socket.getaddrinfo(settings.advertised_host, None)
    except OSError:
        yield Finding(
            "warning",
            "advertised host",
            f"{settings.advertised_host} is not found in the DNS",
            "Clients need it to reach services; set advertised_host.",
        )
