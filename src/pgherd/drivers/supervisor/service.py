"""What one service is, and the files of its service directory. Pure but for the look-up of users."""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgherd import unprivileged

Files = dict[str, tuple[str, int]]

_FINISH = """#!/bin/sh
# Ends what the main process left behind; an older copy that still lives (run waits for it) is left alone.
cd {directory} || exit 0
lock={directory}/lock
holds() {{ for f in /proc/"$1"/fd/*; do [ "$f" -ef "$lock" ] && return 0; done; return 1; }}
main=$(cat holder 2>/dev/null)
if [ -n "$main" ] && holds "$main"; then exit 0; fi
{again}{clear}
exit 0
"""
# s6-supervise 2.11 lets a second pass after each death. One that had lived is started at once, if it is still wished
# for; should it be stopped in that very instant, whoever stops it sees it run and stops it again.
_AGAIN = """if [ $(($(date +%s) - $(stat -c %Y holder 2>/dev/null || date +%s))) -gt 2 ]; then
  (s6-svwait -t 3000 -D . && [ "$(s6-svstat -o wantedup .)" = true ] && s6-svc -u .) </dev/null >/dev/null 2>&1 &
fi
"""
_CLEAR_BY_UID = "setpriv --reuid={uid} --regid={gid} --clear-groups /bin/sh -c 'kill -9 -1' 2>/dev/null"
_CLEAR_BY_LOCK = """flock -n lock true && exit 0
for p in /proc/[0-9]*; do
  if holds "${{p#/proc/}}"; then {as_user}kill -9 "${{p#/proc/}}" 2>/dev/null; fi
done"""


@dataclass(frozen=True)
class Service:
    """One supervised process. `user`: whom to run as (root only; None: as the supervisor).

    `own_user` says that no other service has this user, so that the end of the service ends every process of it.
    `at_once`: start it again without a pause when it dies after some seconds of life. `kill_after_ms`: SIGKILL that
    long after `down_signal`. `start`: start it when first written and at each start of the scanner; False writes a
    `down` file, which `up` removes. `groups`: control groups that the process joins while it is still root.
    `open_files`: how many it may have open, as far as the supervisor may raise that.
    `record`: for what runs once (see `Supervisor.once`): a file, not the service's, that gets the exit code;
    while it is there, the program does not run again. Without `network` it reaches nothing but sockets in files (root
    only).
    """

    argv: Sequence[str]
    user: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    down_signal: str = "SIGTERM"
    kill_after_ms: int = 10_000
    oom_score_adj: int | None = None
    start: bool = True
    own_user: bool = False
    at_once: bool = False
    open_files: int = 0
    groups: Sequence[Path] = ()
    record: Path | None = None
    network: bool = True


def render(directory: Path, logs: Path, service: Service, user: str | None, log_user: str | None) -> Files:
    """The files of a service directory: text and mode by path. `user` and `log_user` are None without root."""
    walled = ["unshare", "--net", "--"] if user and not service.network else []
    command = [
        *walled,
        *as_user(user),
        "env",
        "-i",
        *(f"{k}={v}" for k, v in sorted(service.env.items())),
        *service.argv,
    ]
    adjust = ""
    if service.oom_score_adj is not None:
        adjust = f"{{ echo {service.oom_score_adj} >/proc/self/oom_score_adj; }} 2>/dev/null; "
    for group in service.groups:
        adjust += f"{{ echo 0 >{shlex.quote(str(group / 'cgroup.procs'))}; }} 2>/dev/null; "
    if service.open_files:
        adjust += f'ulimit -n {service.open_files} 2>/dev/null || ulimit -n "$(ulimit -H -n)"; '
    main = f"echo $$ >{shlex.quote(str(directory / 'holder'))}; {adjust}{_execution(service.record)}"
    run = (
        "#!/bin/sh\n"
        f"exec </dev/null 1<>{shlex.quote(str(directory / 'output'))} 2>&1\numask 077\ncd /\n"
        f"exec flock --no-fork {shlex.quote(str(directory / 'lock'))} /bin/sh -c {shlex.quote(main)} \\\n"
        f"  {shlex.join(command)}\n"
    )
    if user and service.own_user:
        entry = pwd.getpwnam(user)
        clear = _CLEAR_BY_UID.format(uid=entry.pw_uid, gid=entry.pw_gid)
    else:
        clear = _CLEAR_BY_LOCK.format(as_user=shlex.join(as_user(user)) + " " if user else "")
    again = _AGAIN if service.at_once else ""
    logger = shlex.join([*as_user(log_user), "s6-log", "-b", "n5", "s1048576", "T", str(logs)])
    log = (
        "#!/bin/sh\n"
        f"exec <>{shlex.quote(str(directory / 'output'))} >/dev/null 2>&1\ncd /\n"
        "export TZ=UTC0\n"  # whose time s6-log writes before each line
        f"exec flock --no-fork {shlex.quote(str(directory / 'log/lock'))} {logger}\n"
    )
    return {
        "run": (run, 0o700),
        "finish": (_FINISH.format(directory=shlex.quote(str(directory)), again=again, clear=clear), 0o700),
        "down-signal": (service.down_signal + "\n", 0o600),
        "timeout-kill": (f"{service.kill_after_ms}\n", 0o600),
        "user": ((user or "") + "\n", 0o600),
        "log/run": (log, 0o700),
        "log/timeout-kill": ("2000\n", 0o600),
        "log/user": ((log_user or "") + "\n", 0o600),
    }


def _execution(record: Path | None) -> str:
    """Become the program; or run it, unless that was done, and write down how it ended."""
    if record is None:
        return 'exec "$0" "$@"'
    file, aside = shlex.quote(str(record)), shlex.quote(f"{record}.new")
    return f'[ -e {file} ] && exit 0; "$0" "$@"; echo $? >{aside} && mv {aside} {file}'


def as_user(user: str | None) -> list[str]:
    """The words before a command that is to run as `user`."""
    if user is None:
        return []
    entry = pwd.getpwnam(user)
    return unprivileged.prefix(entry.pw_uid, entry.pw_gid)
