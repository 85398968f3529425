"""Seal a secret so that only one host can open it: X25519, HKDF-SHA256, AES-256-GCM.

Texts are base64 of: ephemeral public key (32 bytes), nonce (12 bytes), ciphertext with tag.
"""

from __future__ import annotations

import base64
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pgherd.errors import Fault


def new_host_key() -> bytes:
    """A new private key, 32 raw bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> str:
    """The base64 public key that the control plane seals with."""
    return base64.b64encode(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()).decode()


def _cipher(shared: bytes, context: bytes) -> AESGCM:
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=b"pgherd-seal" + context).derive(shared))


def seal(public: str, text: str) -> str:
    """Seal `text` for the host whose public key is `public`."""
    ephemeral = X25519PrivateKey.generate()
    shown = ephemeral.public_key().public_bytes_raw()
    target = base64.b64decode(public)
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(target))
    nonce = os.urandom(12)
    return base64.b64encode(
        shown + nonce + _cipher(shared, shown + target).encrypt(nonce, text.encode(), None)
    ).decode()


def unseal(private: bytes, sealed: str) -> str:
    """Open what `seal` made. Raises Fault when it was sealed for another host or changed."""
    blob = base64.b64decode(sealed)
    key = X25519PrivateKey.from_private_bytes(private)
    shown, nonce, ciphertext = blob[:32], blob[32:44], blob[44:]
    shared = key.exchange(X25519PublicKey.from_public_bytes(shown))
    try:
        return _cipher(shared, shown + key.public_key().public_bytes_raw()).decrypt(nonce, ciphertext, None).decode()
    except InvalidTag:
        raise Fault("A sealed secret cannot be opened on this host.") from None
