"""pgherd's own three processes as s6 services."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pgherd.drivers.supervisor import Service, Supervisor
from pgherd.home import Home
from pgherd.instance.accounts import Accounts
from pgherd.instance.layout import write_file
from pgherd.settings import Settings

#: In the order in which they are stopped.
NAMES = ("worker", "agent", "api")


def supervisor_of(home: Home, who: Accounts) -> Supervisor:
    """The supervision tree of an instance."""
    return Supervisor(home.scan, home.logs, who.log)


def services(home: Home, who: Accounts, environ: Mapping[str, str]) -> dict[str, Service]:
    """The service definitions. Secrets are not among their variables: they read HOME/settings.env themselves."""
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "PGHERD_HOME": str(home.root),
        "PGHERD_SUPERVISED": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "MALLOC_ARENA_MAX": "2",
    }
    if "PGHERD_FAILPOINTS" in environ:
        env["PGHERD_FAILPOINTS"] = environ["PGHERD_FAILPOINTS"]
    program = str(home.current / "bin/pgherd")
    users = {"worker": who.control, "agent": None, "api": who.control}
    if not who.control:
        env["HOME"] = str(Path.home())
    return {
        name: Service(
            argv=[program, name],
            user=users[name],
            env=env,
            start=False,
            kill_after_ms=20_000,
            oom_score_adj=-400 if name == "agent" else -200,
        )
        for name in NAMES
    }


class Fingerprint:
    """What the running processes were started with; they are restarted when it differs."""

    def __init__(self, home: Home, release: Path, settings: Settings, environ: Mapping[str, str]) -> None:
        self._path = home.root / "started.json"
        content = repr((release.name, settings, environ.get("PGHERD_FAILPOINTS")))
        self._now = {"release": release.name, "settings": hashlib.sha256(content.encode()).hexdigest()}

    def differs(self) -> bool:
        """Whether the last start was with something else."""
        try:
            return bool(json.loads(self._path.read_text()) != self._now)
        except (FileNotFoundError, ValueError):
            return True

    def store(self) -> None:
        """Write it down after a start."""
        write_file(self._path, json.dumps(self._now) + "\n", 0o600)
