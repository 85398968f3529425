"""How many bytes come to and go from each service's ports: counters of the kernel, in a table of nftables of their own.

The table decides nothing about any packet. Without root, nft or a kernel that counts so, nothing is counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("pgherd.agent")

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FRESH = 8.0  # seconds that what was read may serve others
_PAUSE = 300.0  # seconds until a host that cannot count is asked again
_TIMEOUT = 10
#: PostgreSQL, PgBouncer and the replica's port; what Prometheus reads is not the tenant's traffic.
_PORTS = 3


@dataclass(frozen=True)
class Traffic:
    """Bytes to and from a service since it is counted; `at` is of the monotonic clock."""

    at: float
    received: int
    sent: int


class Counters:
    """The table of the instance whose home is `root`; `Firewall.remove` takes it away with its own."""

    def __init__(self, root: Path) -> None:
        self.table = f"pgherd_traffic_{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:12]}"
        self._lock = threading.Lock()
        self._counted: set[int] | None = None  # first ports of blocks; None: the table has to be made
        self._found: dict[int, Traffic] = {}
        self._read_at = 0.0
        self._able = os.geteuid() == 0 and shutil.which("nft", path=_PATH) is not None

    def of(self, port: int, ports: Iterable[int]) -> Traffic | None:
        """Of the service whose first port is `port`; `ports` are the first ports of all that are counted."""
        if not self._able:
            return None
        with self._lock:
            now = time.monotonic()
            if now >= self._read_at:
                self._read_at = now + _FRESH
                try:
                    self._count(set(ports))
                    self._found = self._read(time.monotonic())
                except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
                    log.warning("The network is not counted: %s", type(error).__name__)
                    self._found, self._counted, self._read_at = {}, None, now + _PAUSE
            return self._found.get(port)

    def _count(self, ports: set[int]) -> None:
        """Let exactly these be counted; counters of those that were there go on."""
        if self._counted is None:
            _nft(_table(self.table), "-f", "-")
            self._counted = set()
        changes = [
            f"{verb} element inet {self.table} {name} {{ {_elements(some)} }}\n"
            for verb, some in (("add", ports - self._counted), ("delete", self._counted - ports)) if some
            for name in ("received", "sent")
        ]  # fmt: skip
        if changes:
            _nft("".join(changes), "-f", "-")
            self._counted = ports

    def _read(self, at: float) -> dict[int, Traffic]:
        counted: dict[str, dict[int, int]] = {"received": {}, "sent": {}}
        for part in json.loads(_nft("", "-j", "list", "table", "inet", self.table))["nftables"]:
            if "set" in part:
                for element in part["set"].get("elem", []):
                    counted[part["set"]["name"]][element["elem"]["val"]] = element["elem"]["counter"]["bytes"]
        return {
            port: Traffic(at, *(sum(counted[way][port + n] for n in range(_PORTS)) for way in ("received", "sent")))
            for port in self._counted or ()
        }


def _table(name: str) -> str:
    return f"""add table inet {name}
delete table inet {name}
table inet {name} {{
  set received {{ type inet_service; counter; }}
  set sent {{ type inet_service; counter; }}
  chain arriving {{
    type filter hook input priority filter + 5; policy accept;
    tcp dport @received
  }}
  chain leaving {{
    type filter hook output priority filter + 5; policy accept;
    tcp sport @sent
  }}
}}
"""


def _elements(ports: Iterable[int]) -> str:
    return ", ".join(str(int(port) + n) for port in sorted(ports) for n in range(_PORTS))


def _nft(script: str, *arguments: str) -> str:
    env = {"PATH": _PATH, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["nft", *arguments], input=script, capture_output=True, text=True, timeout=_TIMEOUT, env=env, check=True
    ).stdout
