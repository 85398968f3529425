"""The packet filter of this host: who may knock at a service's ports, and where a service's processes may call.

One nftables table an instance, always written as a whole in one transaction, so that a packet meets either the old
rules or the new ones. It holds nothing but numbers and networks that were parsed as such. Nobody else's table is
touched. Without root, nft or a kernel that takes the rules nothing happens here and `problem` says why: then pg_hba
alone keeps the ip-filter.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgherd.errors import HostFault

log = logging.getLogger("pgherd.agent")

#: Ports of a service: its own and the following ones.
BLOCK = 4
#: The first of them are those that clients use; the last one, the exporter's, no other service has to call.
_FOR_CLIENTS = 3
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROBE_EVERY = 60.0  # seconds between looks whether a host that could not filter now can
_TIMEOUT = 20  # seconds that one nft may take
_DNS = 53
#: Table -> home of the instance that wrote it; in memory like the tables themselves.
_NOTES = Path("/run/pgherd-firewall")
_TABLE = re.compile(r"pgherd_[0-9a-f]{12}")
#: Where clouds tell a machine its own credentials.
_CLOUD = ("169.254.0.0/16", "fd00:ec2::254/128")

_NETLINK_NETFILTER, _GETGEN, _NEWGEN, _GEN_ID = 12, 10 << 8 | 16, 10 << 8 | 15, 1


@dataclass(frozen=True)
class Door:
    """What counts for one node: its first `port`, the networks that may come in, and the `uid` of its processes.

    `service` is the service's id: processes of a service's nodes may call each other's ports. `neighbours`: the
    networks from which other services of this machine may call it; the owner's word, not what `networks` adds to it.
    `stores`: the ports of the servers that have its backups and those that it is made from, should they be on this
    machine.
    """

    port: int
    networks: tuple[str, ...]
    service: str
    uid: int | None
    neighbours: tuple[str, ...] = ()
    stores: tuple[int, ...] = ()


class Firewall:
    """The table of the instance whose home is `root`; no service may answer on a `reserved` port not its own."""

    def __init__(self, root: Path, reserved: Iterable[tuple[int, int]] = ()) -> None:
        self._home = str(root.absolute())
        self.table = f"pgherd_{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:12]}"
        self.problem = "not looked at yet"
        self._reserved = tuple(reserved)
        self._doors: dict[str, Door] = {}
        self._wished = self._written = 0
        self._model, self._writing = threading.Lock(), threading.Lock()
        self._listing, self._generation = "", -1
        self._probe_at = 0.0

    def begin(self, doors: Mapping[str, Door]) -> None:
        """Let exactly these doors, by node, be there. An error is logged: `keep` tries again."""
        with self._model:
            self._doors = dict(doors)
            self._wished += 1
        self.keep()
        if not self.problem:
            try:
                self._sweep()
            except (HostFault, OSError) as error:
                log.error("The firewall: tables of instances that are gone: %s", error)

    def put(self, node: str, door: Door) -> None:
        """Let this be the node's door. Raises HostFault when the kernel refuses it."""
        with self._model:
            if self._doors.get(node) != door:
                self._doors.pop(node, None)  # the last one that came has a port
                self._doors[node] = door
                self._wished += 1
            wished = self._wished
        self._write(wished)

    def drop(self, node: str) -> None:
        """The node has no door any more. Raises HostFault."""
        with self._model:
            if self._doors.pop(node, None) is not None:
                self._wished += 1
            wished = self._wished
        self._write(wished)

    def keep(self) -> None:
        """Write the table again when somebody else changed or removed it; costs next to nothing when nobody did."""
        try:
            if self.problem:
                self._probe()
            if not self.problem and self._disturbed():
                with self._model:
                    self._wished += 1
                    wished = self._wished
                self._write(wished)
        except HostFault as error:
            log.error("The firewall: %s", error)

    def remove(self) -> None:
        """Remove the table and that of `traffic`, whoever wrote them; nothing happens when there is none."""
        if os.geteuid() == 0 and shutil.which("nft", path=_PATH):
            with self._writing:
                _nft(_without(self.table), "-f", "-")
                (_NOTES / self.table).unlink(missing_ok=True)

    def ports(self) -> set[int]:
        """The ports that the kernel guards for this instance. Raises HostFault when it cannot be asked."""
        if self.table not in _nft("", "list", "tables"):
            return set()
        heard = json.loads(_nft("", "-j", "list", "set", "inet", self.table, "ports"))
        found: set[int] = set()
        for entry in (part["set"] for part in heard["nftables"] if "set" in part):
            for element in entry.get("elem", []):
                first, last = element["range"] if isinstance(element, dict) else (element, element)
                found |= set(range(int(first), int(last) + 1))
        return found

    def look(self) -> str:
        """Why this host cannot filter; empty when it can. Changes nothing on the host."""
        if os.geteuid() != 0:
            return "not root"
        if shutil.which("nft", path=_PATH) is None:
            return "the program nft is not installed"
        sample = Door(1024, ("192.0.2.0/24", "2001:db8::/32"), "sample", 1)
        try:
            _nft(render(f"{self.table}_probe", [sample], [(1, 1)]), "-c", "-f", "-")
        except HostFault as error:
            return f"the kernel refuses: {error.detail}"
        return ""

    # --- inside --------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Remove the tables of instances whose home is gone: their uids may be another instance's by now."""
        _NOTES.mkdir(mode=0o700, exist_ok=True)
        (_NOTES / self.table).write_text(self._home)
        for note in _NOTES.iterdir():
            if _TABLE.fullmatch(note.name) and not os.path.exists(note.read_text()):
                log.info("The instance of table %s is gone; so is the table", note.name)
                _nft(_without(note.name), "-f", "-")
                note.unlink()

    def _probe(self) -> None:
        if time.monotonic() < self._probe_at:
            return
        self._probe_at = time.monotonic() + _PROBE_EVERY
        found = self.look()
        if found and found != self.problem:
            log.warning("No packet filter, pg_hba alone keeps the ip-filter: %s", found)
        self.problem = found

    def _write(self, wished: int) -> None:
        """Write the table unless somebody has done so since `wished` was asked for: one nft serves a burst."""
        if self.problem:
            return
        with self._writing:
            if self._written >= wished:
                return
            with self._model:
                doors, version = list(self._doors.values()), self._wished
            _nft(render(self.table, doors, self._reserved), "-f", "-")
            self._written = version
            self._generation = _ruleset_generation()
            self._listing = self._list()

    def _disturbed(self) -> bool:
        with self._model:
            if self._written < self._wished:
                return True
        if not self._writing.acquire(blocking=False):
            return False
        try:
            generation = _ruleset_generation()
            if generation == self._generation and generation != -1:
                return False
            self._generation = generation
            return self._list() != self._listing
        finally:
            self._writing.release()

    def _list(self) -> str:
        """The table as the kernel has it; empty when it is not there."""
        try:
            return _nft("", "-s", "list", "table", "inet", self.table)
        except HostFault as error:
            if error.detail.startswith("Error: No such file or directory"):
                return ""
            raise


def render(table: str, doors: Iterable[Door], reserved: Iterable[tuple[int, int]]) -> str:
    """The transaction that makes the table what `doors` say; without doors there is no table. Raises HostFault."""
    head = f"add table inet {table}\ndelete table inet {table}\n"
    apart = _apart(doors)
    if not apart:
        return head
    blocks = {door.port: f"{door.port}-{door.port + BLOCK - 1}" for door in apart}
    allowed: dict[int, list[str]] = {4: [], 6: []}
    callers: dict[int, list[str]] = {4: [], 6: []}
    for door in apart:
        for network in _networks(door.networks):
            allowed[network.version].append(f"{blocks[door.port]} . {network}")
        for network in _networks(door.neighbours):
            callers[network.version].append(f"{door.port}-{door.port + _FOR_CLIENTS - 1} . {network}")
    family: dict[str, list[int]] = {}
    for door in apart:
        family.setdefault(door.service, []).append(door.port)
    own = [
        f"{door.uid} . {port + offset}"
        for door in apart if door.uid is not None for port in family[door.service] for offset in range(BLOCK)
    ]  # fmt: skip
    stores = [f"{door.uid} . {int(port)}" for door in apart if door.uid is not None for port in door.stores]
    uids = [str(door.uid) for door in apart if door.uid is not None]
    kept = [f"{int(first)}-{int(last)}" for first, last in reserved]
    v4, v6 = _CLOUD
    return (
        head
        + f"""table inet {table} {{
  set ports {{ type inet_service; flags interval; {_elements(blocks.values())} }}
  set allowed4 {{ type inet_service . ipv4_addr; flags interval; {_elements(allowed[4])} }}
  set allowed6 {{ type inet_service . ipv6_addr; flags interval; {_elements(allowed[6])} }}
  set callers4 {{ type inet_service . ipv4_addr; flags interval; {_elements(callers[4])} }}
  set callers6 {{ type inet_service . ipv6_addr; flags interval; {_elements(callers[6])} }}
  set uids {{ type uid; {_elements(dict.fromkeys(uids))} }}
  set own {{ type uid . inet_service; {_elements(dict.fromkeys(own))} }}
  set stores {{ type uid . inet_service; {_elements(dict.fromkeys(stores))} }}
  set reserved {{ type inet_service; flags interval; auto-merge; {_elements(kept)} }}
  chain arriving {{
    type filter hook input priority filter - 5; policy accept;
    tcp dport != @ports accept
    tcp dport . ip saddr @allowed4 accept
    tcp dport . ip6 saddr @allowed6 accept
    meta l4proto tcp reject with tcp reset
  }}
  chain leaving {{
    type filter hook output priority filter - 5; policy accept;
    meta l4proto != tcp accept
    meta skuid != @uids accept
    tcp flags & (syn | ack) == syn goto calling
    meta skuid . tcp sport @own accept
    tcp sport @reserved meta skuid @uids drop
    oifname "lo" tcp dport @ports meta skuid @uids goto calling
  }}
  chain calling {{
    oifname "lo" meta skuid . tcp dport @own accept
    oifname "lo" meta skuid . tcp dport @stores accept
    oifname "lo" tcp dport . ip saddr @callers4 accept
    oifname "lo" tcp dport . ip6 saddr @callers6 accept
    tcp dport {_DNS} accept
    oifname "lo" meta l4proto tcp reject with tcp reset
    ip daddr {v4} meta l4proto tcp reject with tcp reset
    ip6 daddr {v6} meta l4proto tcp reject with tcp reset
  }}
}}
"""
    )


def _without(table: str) -> str:
    """The transaction after which neither the table is there nor the one that counts the same ports' traffic."""
    both = (table, table.replace("pgherd_", "pgherd_traffic_"))
    return "".join(f"add table inet {name}\ndelete table inet {name}\n" for name in both)


def _apart(doors: Iterable[Door]) -> list[Door]:
    """The doors in the order of their ports; of two that would share a port the later one."""
    found: list[Door] = []
    for door in reversed(list(doors)):
        if not 0 < door.port <= 65535 - BLOCK or (door.uid is not None and not 0 < int(door.uid) < 2**32 - 1):
            raise HostFault("A port or user id cannot be filtered.", detail=f"{door.port} {door.uid}")
        if all(abs(other.port - door.port) >= BLOCK for other in found):
            found.append(door)
    return sorted(found, key=lambda door: door.port)


def _networks(texts: Iterable[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Parsed and without overlaps, which the kernel's sets do not take. IPv4 in an IPv6 coat arrives as IPv4."""
    v4: list[ipaddress.IPv4Network] = []
    v6: list[ipaddress.IPv6Network] = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise HostFault("An entry of ip-filter is no address or network.", detail=repr(text)[:80]) from None
        if isinstance(network, ipaddress.IPv4Network):
            v4.append(network)
        elif (mapped := network.network_address.ipv4_mapped) and network.prefixlen >= 96:
            v4.append(ipaddress.IPv4Network((mapped, network.prefixlen - 96)))
        elif network.network_address.scope_id is None:
            v6.append(network)
        else:
            raise HostFault("An entry of ip-filter has a scope.", detail=repr(text)[:80])
    return [*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6)]


def _elements(words: Iterable[str]) -> str:
    listed = ", ".join(words)
    return f"elements = {{ {listed} }};" if listed else ""


def _nft(script: str, *arguments: str) -> str:
    env = {"PATH": _PATH, "LC_ALL": "C.UTF-8"}
    try:
        ended = subprocess.run(
            ["nft", *arguments], input=script, capture_output=True, text=True, timeout=_TIMEOUT, env=env, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostFault("The packet filter cannot be changed.", detail=type(error).__name__) from None
    if ended.returncode != 0:
        raise HostFault("The packet filter cannot be changed.", detail=" ".join(ended.stderr.split())[:200])
    return ended.stdout


def _ruleset_generation() -> int:
    """A number that the kernel changes with every change of any table; -1 when it does not tell."""
    request = struct.pack("=LHHLLBBH", 20, _GETGEN, 1, 1, 0, 0, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as link:
            link.settimeout(1)
            link.send(request)
            answer = link.recv(4096)
    except OSError:
        return -1
    if len(answer) < 28 or struct.unpack_from("=H", answer, 4)[0] != _NEWGEN:
        return -1
    length, kind, number = struct.unpack_from("=HH4s", answer, 20)
    return int.from_bytes(number, "big") if kind == _GEN_ID and length == 8 else -1
