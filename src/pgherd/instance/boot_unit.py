"""Start with the machine: a unit for systemd, a script for OpenRC or System V init, where one of them runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from pgherd.errors import HostFault, Incorrect
from pgherd.home import Home
from pgherd.instance import effective
from pgherd.instance.layout import write_file

_SYSTEMD = """\
# Written by `pgherd boot-unit install`.
[Unit]
Description=pgherd, managed PostgreSQL
After=network-online.target local-fs.target time-sync.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PGHERD_HOME={home}
ExecStart={home}/current/bin/pgherd up --as-before
ExecStop={home}/current/bin/pgherd down
TimeoutStartSec=300
TimeoutStopSec=300
LimitNOFILE=65536
TasksMax=infinity
OOMPolicy=continue

[Install]
WantedBy={target}
"""

_SYSV = """\
#!/bin/sh
# Written by `pgherd boot-unit install`.
### BEGIN INIT INFO
# Provides:          pgherd
# Required-Start:    $remote_fs $network $time
# Required-Stop:     $remote_fs $network
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: pgherd, managed PostgreSQL
### END INIT INFO
export PGHERD_HOME={home}
case "$1" in
    start) exec {home}/current/bin/pgherd up --as-before ;;
    stop) exec {home}/current/bin/pgherd down ;;
    restart|force-reload) {home}/current/bin/pgherd down && exec {home}/current/bin/pgherd up --as-before ;;
    status) exec {home}/current/bin/pgherd doctor ;;
    *) echo "Usage: $0 start|stop|restart|status" >&2; exit 2 ;;
esac
"""

_OPENRC = """\
#!/sbin/openrc-run
# Written by `pgherd boot-unit install`.
description="pgherd, managed PostgreSQL"
export PGHERD_HOME={home}
depend() {{
    need localmount
    use net
}}
start() {{
    {home}/current/bin/pgherd up --as-before
}}
stop() {{
    {home}/current/bin/pgherd down
}}
"""


def init_system() -> str | None:
    """`systemd`, `openrc` or `sysv`: what started this machine; None when it is none of them."""
    if Path("/run/systemd/system").is_dir():
        return "systemd"
    if Path("/run/openrc").is_dir():
        return "openrc"
    if Path("/proc/1/comm").read_text().strip() == "init" and shutil.which("update-rc.d"):
        return "sysv"
    return None


def _file(kind: str) -> Path:
    if kind != "systemd":
        return Path("/etc/init.d/pgherd")
    if os.geteuid() == 0:
        return Path("/etc/systemd/system/pgherd.service")
    return Path.home() / ".config/systemd/user/pgherd.service"


def _text(kind: str, home: Home) -> str:
    template = {"systemd": _SYSTEMD, "openrc": _OPENRC, "sysv": _SYSV}[kind]
    return template.format(home=home.root, target="multi-user.target" if os.geteuid() == 0 else "default.target")


def installed(home: Home) -> tuple[str | None, bool]:
    """The init system, and whether it starts this instance."""
    kind = init_system()
    if kind is None:
        return None, False
    try:
        return kind, str(home.root) in _file(kind).read_text()
    except OSError:
        return kind, False


def run(action: str, environ: Mapping[str, str], say: Callable[[str], None]) -> int:
    """`install`, `remove` or `show`. Raises Incorrect where nothing can be installed."""
    home, kind = effective.home_of(environ), init_system()
    if action == "show":
        print(_text(kind or "systemd", home), end="")
        return 0
    if kind is None:
        raise Incorrect(
            "No init system runs here that pgherd knows (systemd, OpenRC, System V), as in most containers."
            f" Let whatever starts this machine run: PGHERD_HOME={home.root} {home.current}/bin/pgherd up --as-before"
        )
    if kind != "systemd" and os.geteuid() != 0:
        raise Incorrect("Without root a boot unit needs systemd; ask an administrator, or run `make up` after a boot.")
    path = _file(kind)
    if action == "install":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _text(kind, home), 0o644 if kind == "systemd" else 0o755)
        _enable(kind)
        say(f"the instance starts with this machine ({path})")
        if os.geteuid() != 0:
            say("for a start before you log in, run once: loginctl enable-linger")
    else:
        _disable(kind)
        path.unlink(missing_ok=True)
        say("the instance does not start with this machine any more")
    return 0


def _systemctl(*arguments: str) -> list[str]:
    return ["systemctl", *([] if os.geteuid() == 0 else ["--user"]), *arguments]


def _enable(kind: str) -> None:
    commands = {
        "systemd": [_systemctl("daemon-reload"), _systemctl("enable", "pgherd.service")],
        "openrc": [["rc-update", "add", "pgherd", "default"]],
        "sysv": [["update-rc.d", "pgherd", "defaults"]],
    }
    _run_all(commands[kind])


def _disable(kind: str) -> None:
    commands = {
        "systemd": [_systemctl("disable", "pgherd.service")],
        "openrc": [["rc-update", "del", "pgherd", "default"]],
        "sysv": [["update-rc.d", "-f", "pgherd", "remove"]],
    }
    _run_all(commands[kind])


def _run_all(commands: list[list[str]]) -> None:
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise HostFault(f"{' '.join(command)} failed.", detail=done.stderr.strip())
