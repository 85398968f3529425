"""Passwords, their SCRAM-SHA-256 verifiers as PostgreSQL stores them (RFC 5802, RFC 7677), and hashes for exporters."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

import bcrypt

ITERATIONS = 4096


def new_password() -> str:
    """24 characters of A-Z a-z 0-9 - _, 144 bits."""
    return secrets.token_urlsafe(18)


def verifier(password: str) -> str:
    """A SCRAM-SHA-256 verifier with a fresh salt. The contract's characters are ASCII, so SASLprep changes nothing."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    shown = [base64.b64encode(raw).decode() for raw in (salt, stored, server)]
    return f"SCRAM-SHA-256${ITERATIONS}:{shown[0]}${shown[1]}:{shown[2]}"


def bcrypt_hash(password: str) -> str:
    """A hash as exporters want it. The cheapest: a drawn password is beyond guessing, and each scrape pays for it."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
