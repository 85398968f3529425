"""The key file on its way to a safe place: as it is, or under a passphrase (scrypt, AES-256-GCM). Pure."""

from __future__ import annotations

import base64
import binascii
import os
import tomllib
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from pgherd.errors import Incorrect

LEAST_PASSPHRASE = 8
_FORMAT = "pgherd-keys-1"
_COST, _BLOCK, _LANES = 1 << 17, 8, 1  # 128 MiB and a fraction of a second for each guess
_MOST_COST = 1 << 20
_PLAIN = "# The keys of a pgherd instance: whoever has this file can open every secret and backup of it.\n"
_LOCKED = "# The keys of a pgherd instance under a passphrase; `pgherd secrets import` opens it.\n"


def plain(text: str) -> str:
    """The export of a key file's content without protection."""
    return _PLAIN + text


def locked(text: str, passphrase: str) -> str:
    """The export of a key file's content under a passphrase. Raises Incorrect when that is too short."""
    if len(passphrase) < LEAST_PASSPHRASE:
        raise Incorrect(f"The passphrase must have at least {LEAST_PASSPHRASE} characters.")
    salt, nonce = os.urandom(16), os.urandom(12)
    sealed = _cipher(passphrase, salt, _COST).encrypt(nonce, text.encode(), _FORMAT.encode())
    return (
        f'{_LOCKED}format = "{_FORMAT}"\ncost = {_COST}\nsalt = "{base64.b64encode(salt).decode()}"\n'
        f'sealed = "{base64.b64encode(nonce + sealed).decode()}"\n'
    )


def is_locked(export: str) -> bool:
    """Whether an export needs a passphrase."""
    return "format" in _table(export)


def opened(export: str, passphrase: str) -> str:
    """The key file's content. Raises Incorrect when the export is damaged or the passphrase another."""
    table = _table(export)
    if "format" not in table:
        return export.removeprefix(_PLAIN)
    if table["format"] != _FORMAT:
        raise Incorrect("These keys were exported in a form that this version does not know.")
    try:
        cost, salt = int(table["cost"]), base64.b64decode(table["salt"], validate=True)
        blob = base64.b64decode(table["sealed"], validate=True)
        if not 2 <= cost <= _MOST_COST:
            raise ValueError
        return _cipher(passphrase, salt, cost).decrypt(blob[:12], blob[12:], _FORMAT.encode()).decode()
    except InvalidTag:
        raise Incorrect("The passphrase is another, or the export was changed.") from None
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise Incorrect("The export of the keys is damaged.") from None


def _table(export: str) -> dict[str, Any]:
    try:
        return tomllib.loads(export)
    except tomllib.TOMLDecodeError:
        raise Incorrect("This is no export of pgherd's keys, or a damaged one.") from None


def _cipher(passphrase: str, salt: bytes, cost: int) -> AESGCM:
    return AESGCM(Scrypt(salt=salt, length=32, n=cost, r=_BLOCK, p=_LANES).derive(passphrase.encode()))
