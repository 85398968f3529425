"""What the front keeps in the user's configuration: its CA, the bundle for clients, and where it listens.

ca.pem, ca-key.pem   made once, again when they are due; the key is for the user's eyes alone
bundle.pem           the system's CAs and this one, made at every start
front.json           address, zone and token of the front that runs, which holds a lock on it
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import secrets
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgherd.errors import Conflict, Incorrect
from pgherd.front import authority

#: Where systems keep all their CAs in one file, for those where OpenSSL names none.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


class Place:
    """One user's directory of the front."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        home = Path(environ.get("HOME") or Path.home())
        self.path = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pgherd" / "terraform-front"
        self.bundle = self.path / "bundle.pem"
        self._state = self.path / "front.json"

    def ensure(self) -> tuple[str, str]:
        """Certificate and key of the CA; makes what is missing, and the bundle anew."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.path.stat().st_uid != os.geteuid():
            raise Incorrect(f"{self.path} is another user's; let HOME or XDG_CONFIG_HOME name a directory of yours.")
        self.path.chmod(0o700)
        with self._locked(self.path / "lock"):
            certificate, key = self._authority()
            _write(self.bundle, "\n".join([*system_authorities(self._environ, self.bundle), certificate]))
        return certificate, key

    def _authority(self) -> tuple[str, str]:
        certificate, key = self.path / "ca.pem", self.path / "ca-key.pem"
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = certificate.read_text(), key.read_text()
            if not authority.due(found[0]):
                return found
        made = authority.new_authority(f"{getpass.getuser()}@{socket.gethostname()}")
        certificate.unlink(missing_ok=True)  # first, so that no key is ever beside another one's certificate
        _write(key, made[1])
        _write(certificate, made[0])
        return made

    def token(self) -> str:
        """The token of the last front if there was one, so that a shell's variables last, else a new one."""
        known = self._read().get("token")
        return known if isinstance(known, str) and len(known) >= 32 else secrets.token_urlsafe(24)

    @contextlib.contextmanager
    def announced(self, listen: str, zone: str, url: str, token: str) -> Iterator[None]:
        """While the front runs: tell where it is, its zone, and the URL of its instance.

        Raises Conflict when another front of this user runs.
        """
        with self._held():
            _write(self._state, json.dumps({"listen": listen, "zone": zone, "url": url, "token": token}))
            yield

    def running(self) -> dict[str, str]:
        """listen, zone, url and token of the front that runs. Raises Incorrect when none does."""
        try:
            with self._held():
                pass
        except Conflict:
            found = self._read()
            if {"listen", "zone", "url", "token"} <= set(found):
                return found
        except FileNotFoundError:
            pass
        raise Incorrect(
            "No front for Terraform runs here. Start it in another terminal: pgherd terraform-front"
            " (or give it one command: pgherd terraform-front -- terraform apply)"
        )

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The lock of the front that runs; it ends with its process, however that ends."""
        with open(os.open(self.path / "running", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict('A front runs already. Use it: eval "$(pgherd env --terraform)"') from None
            yield

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(self._state.read_text())
            if isinstance(found, dict):
                return found
        return {}

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def system_authorities(environ: Mapping[str, str], ours: Path) -> list[str]:
    """The CAs that programs of this user trust already, PEM: what the environment names, else the system's."""
    chosen = environ.get("SSL_CERT_FILE", "")
    if chosen in ("", str(ours)):
        known = (ssl.get_default_verify_paths().cafile, *_BUNDLES)
        chosen = next((path for path in known if path and os.path.exists(path)), "")
    paths = [path for path in (chosen, environ.get("REQUESTS_CA_BUNDLE", "")) if path not in ("", str(ours))]
    try:
        return [Path(path).read_text() for path in dict.fromkeys(paths)]
    except (OSError, ValueError) as error:
        raise Incorrect(f"SSL_CERT_FILE or REQUESTS_CA_BUNDLE names no file of certificates: {error}.") from None


def _write(path: Path, text: str) -> None:
    """Replace a file at once; nobody but the user may read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
