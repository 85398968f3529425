"""Secrets at rest: AES-256-GCM under a key from a file, each ciphertext with its key's id.

A ciphertext is: length of the key id (1 byte), key id, nonce (12 bytes), ciphertext with tag. The file also holds the
passphrase of the metadata's own backups, which is never rotated: what it protects lies outside of the metadata.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import secrets
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgherd.errors import Fault, Incorrect
from pgherd.home import Home
from pgherd.settings import Settings


def key_file(settings: Settings) -> Path:
    """Where the keys of this instance are."""
    return Home(settings.root).secrets / "keys.toml"


@dataclass(frozen=True)
class Keys:
    """What the key file holds. `repository`: the passphrase of the metadata's backups."""

    current: str
    keys: dict[str, bytes] = field(repr=False)
    repository: str = field(repr=False)

    @property
    def text(self) -> str:
        """The file's content."""
        return f'current = "{self.current}"\nrepository = "{self.repository}"\n\n[keys]\n' + "".join(
            f'{name} = "{base64.b64encode(key).decode()}"\n' for name, key in self.keys.items()
        )


def parse_keys(text: str) -> Keys:
    """Read the content of a key file. Raises Incorrect when it is none."""
    try:
        table = tomllib.loads(text)
        keys = {str(name): base64.b64decode(key, validate=True) for name, key in table["keys"].items()}
        found = Keys(table["current"], keys, str(table.get("repository", "")))
        if found.current not in keys or any(len(key) != 32 for key in keys.values()):
            raise ValueError
    except (tomllib.TOMLDecodeError, binascii.Error, KeyError, TypeError, ValueError, AttributeError):
        raise Incorrect("This is no key file of pgherd, or a damaged one.") from None
    return found


def ensure_key_file(path: Path) -> None:
    """Make the key file with a first key where there is none. The caller decides on owner and mode of the directory."""
    if not path.exists():
        write_keys(path, Keys("k1", {"k1": secrets.token_bytes(32)}, secrets.token_urlsafe(32)))
        return
    with _alone(path):
        found = parse_keys(path.read_text())
        if not found.repository:
            write_keys(path, replace(found, repository=secrets.token_urlsafe(32)))


def fingerprint(content: bytes) -> str:
    """What tells two key files apart and says nothing of the keys."""
    return hashlib.sha256(content).hexdigest()


def write_keys(path: Path, keys: Keys) -> None:
    """Put the file in place at once, with the mode and owner of the one before."""
    aside = path.with_suffix(".new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(keys.text)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        before = path.stat()
        os.chown(aside, before.st_uid, before.st_gid)
        os.chmod(aside, before.st_mode & 0o777)
    aside.rename(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    """Make a rename last: no secret may be stored under a key that a power cut takes back."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One rotation at a time: two would each make a key of the same name."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Vault:
    """Seals and opens; reads the key file again when it meets an id that it does not know."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._load()

    def _load(self) -> None:
        found = parse_keys(self._path.read_text())
        self._keys, self.current = found.keys, found.current

    def seal(self, plain: bytes) -> bytes:
        """Encrypt under the current key."""
        nonce = os.urandom(12)
        name = self.current.encode()
        return bytes([len(name)]) + name + nonce + AESGCM(self._keys[self.current]).encrypt(nonce, plain, name)

    def key_of(self, sealed: bytes) -> str:
        """The id of the key that `sealed` needs."""
        return sealed[1 : 1 + sealed[0]].decode()

    def open(self, sealed: bytes) -> bytes:
        """Decrypt. Raises Fault when the key is unknown or the text was changed."""
        name = self.key_of(sealed)
        if name not in self._keys:
            self._load()
        if name not in self._keys:
            raise Fault("A stored secret cannot be opened.", detail=f"key {name} is not in the key file")
        start = 1 + sealed[0]
        try:
            return AESGCM(self._keys[name]).decrypt(sealed[start : start + 12], sealed[start + 12 :], name.encode())
        except InvalidTag:
            raise Fault("A stored secret cannot be opened.", detail=f"wrong key {name} or changed text") from None


def rotate(settings: Settings) -> str:
    """Make a new key current and re-encrypt every stored secret under it; the new key's id.

    Safe while the API and the workers run: they read the key file again when they meet the new id. What they
    write under the old key in between is found by the next rotation; keys in use are never dropped.
    """
    path = key_file(settings)
    with _alone(path):
        return _rotate(settings, path)


def _rotate(settings: Settings, path: Path) -> str:
    from pgherd.store.db import Db, database_url
    from pgherd.store.events import leave_event

    before = parse_keys(path.read_text())
    number = 1 + max(int(name[1:]) for name in before.keys)
    both = replace(before, current=f"k{number}", keys={**before.keys, f"k{number}": secrets.token_bytes(32)})
    write_keys(path, both)
    vault = Vault(path)
    in_use = {vault.current}
    db = Db(database_url(settings), 1)
    try:
        with db.transaction() as tx:
            for table, column, identity in _COLUMNS:
                for row in tx.connection.execute(
                    f"select {identity} as id, {column} as sealed from {table} where {column} <> '' for no key update"
                ).fetchall():
                    in_use.add(vault.key_of(row["sealed"]))
                    tx.connection.execute(
                        f"update {table} set {column} = %s where {identity} = %s",
                        [vault.seal(vault.open(row["sealed"])), row["id"]],
                    )
            tx.run("notify_keys")
            leave_event(tx, "rotate-secrets", vault.current)
    finally:
        db.close()
    write_keys(path, replace(both, keys={name: key for name, key in both.keys.items() if name in in_use}))
    return vault.current


_COLUMNS = (
    ("organization", "ca_key", "id"),
    ("api_key", "secret", "key"),
    ("service", "secrets", "id"),
    ("operation", "secret", "id"),
    ("recovery_key", "private_key", "id"),
    ("repository", "key", "service_id"),
    ("user_secret", "secret", "ctid"),  # rows that are locked stay where they are
)
