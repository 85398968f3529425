"""Recovery of a cluster by a server that nobody can connect to: its command line, what it says, timelines' histories.

A single-user server recovers, takes a new timeline, runs a few statements and ends. Unlike a full one it starts no
worker of a subscription and no archiver, and is over when it is done.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pgherd.spec import Backup

#: What a copy of another service's cluster must not do: receive what its source subscribes to, or drop its slot there.
DETACHING = "UPDATE pg_subscription SET subenabled = false, subslotname = NULL;\n\n"
#: Of one segment: every cluster here is made with PostgreSQL's own default.
SEGMENT_BYTES = 16 << 20


@dataclass(frozen=True)
class Recovered:
    """How a recovery ended. `timeline`: the new one, 0: the old one goes on. `until`: the last transaction's time.

    `short`: the archive ended before the target. `end`: the position where the log was read to, 0: unknown, and `left`
    the timeline that it was read from there, 0: unknown.
    """

    timeline: int
    until: str
    short: bool
    end: int = 0
    left: int = 0


def command(programs: Path, config: Path, pgdata: Path, fetch: str, target: str, timeline: str) -> list[str]:
    """The server, of the directory `programs`, on `pgdata` with the cluster's configuration in `config`.

    `fetch`: the `restore_command`; empty: there are only the segments of `pgdata`.

    `target`: RFC 3339, empty: to the end. `timeline`: a number, `latest` or `current`.
    """
    values = {
        "config_file": config / "postgresql.conf",
        "hot_standby": "off",
        "shared_preload_libraries": "",
        "session_preload_libraries": "",
        "allow_system_table_mods": "on",
        "default_transaction_read_only": "off",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_min_messages": "warning",
        "log_timezone": "UTC",
        "ssl": "off",
        "restore_command": fetch or "false",
        "recovery_target_timeline": timeline,
        "recovery_target_action": "promote",
        "recovery_init_sync_method": "syncfs",  # the files are new: one call instead of one for each
    }
    if target:
        values["recovery_target_time"] = target.replace("Z", "+00")
    options = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
    return [f"{programs}/postgres", "--single", "-j", "-D", str(pgdata), *options, "postgres"]


def parse(said: str) -> Recovered:
    """What the server said while it recovered."""
    timelines = re.findall(r"selected new timeline ID: (\d+)", said)
    times = re.findall(r"last completed transaction was at log time (\S+ \S+)", said)
    stopped = re.findall(r"recovery stopping (?:before|after) \w+ of transaction \d+, time (\S+ \S+)", said)
    last = (times or stopped or [""])[-1].replace("+00", "").replace(" UTC", "").replace(" ", "T", 1)
    short = "recovery ended before configured recovery target was reached" in said
    done = re.findall(r"redo done at ([0-9A-F]{1,8})/([0-9A-F]{1,8})", said)
    end = _position(*done[-1]) + 1 if done else 0  # where the last record begins
    return Recovered(int(timelines[-1]) if timelines else 0, _moment(last), short, end)


def _moment(text: str) -> str:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None).isoformat() + "Z" if text else ""
    except ValueError:
        return ""


def complaint(said: str) -> str:
    """The server's last word about why it ended."""
    found = re.findall(r"(?:FATAL|PANIC|ERROR):\s+(.*)", said)
    return found[-1] if found else (said.strip().splitlines() or ["no reason given"])[-1]


def parse_history(text: str) -> dict[int, int]:
    """A timeline's history file: the position at which each earlier timeline was left."""
    found = re.findall(r"^\s*(\d+)\s+([0-9A-F]{1,8})/([0-9A-F]{1,8})\s", text, re.MULTILINE)
    return {int(timeline): _position(high, low) for timeline, high, low in found}


def segment(timeline: int, running: int) -> str:
    """The name of a segment by its running number."""
    return f"{timeline:08X}{running >> 8:08X}{running & 0xFF:08X}"


def missing(recovered: Recovered, timeline: int, history: dict[int, int], newest: str) -> str:
    """The segment for want of which recovery along a timeline ended before the archive does; empty: it did not.

    `newest`: the newest segment that it has to have read; `history`: where earlier timelines were left for this one. A
    record that fills whole segments and was never finished looks like one that is missing.
    """
    read = max(0, recovered.end - 1) // SEGMENT_BYTES
    if recovered.left in history and recovered.end > history[recovered.left]:
        # It went on in what another history wrote there, because this one's segment is missing.
        return segment(timeline, history[recovered.left] // SEGMENT_BYTES)
    if not newest or read >= running(newest):
        return ""
    line = next((n for n, left in sorted(history.items()) if read + 1 < left // SEGMENT_BYTES), timeline)
    return segment(line, read + 1)


def covers(recovered: Recovered, target: str) -> bool:
    """Whether the last transaction that there is was the last one by `target`, though no later one shows it."""
    return bool(target and recovered.until) and (
        datetime.fromisoformat(target) <= datetime.fromisoformat(recovered.until)
    )


def running(name: str) -> int:
    """The running number of a segment's name."""
    return (int(name[8:16], 16) << 8) + int(name[16:24], 16)


def _position(high: str, low: str) -> int:
    return (int(high, 16) << 32) + int(low, 16)


def usable(backups: Sequence[Backup], timeline: int, history: dict[int, int], target: datetime | None) -> list[Backup]:
    """The backups from which `timeline` can be reached and `target` lies after their end, the newest first."""

    def leads_there(backup: Backup) -> bool:
        if not re.fullmatch("[0-9A-F]{24}", backup.wal_start) or not re.fullmatch("[0-9A-F]{24}", backup.wal_stop):
            return False
        number = int(backup.wal_start[:8], 16)
        if number == timeline:
            return True
        return number in history and running(backup.wal_stop) <= history[number] // SEGMENT_BYTES

    def early_enough(backup: Backup) -> bool:
        return target is None or datetime.fromisoformat(backup.ended_at).timestamp() + 1 <= target.timestamp()

    found = [backup for backup in backups if leads_there(backup) and early_enough(backup)]
    return sorted(found, key=lambda backup: backup.ended_at, reverse=True)
