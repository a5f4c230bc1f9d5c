"""What a key looks like: recognisable, unguessable, with a checksum that tells a typing error from an unknown key."""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib

PREFIX = "mcp_metrics_"
RANDOM_BYTES = 32
"""256 bits; as URL-safe text they are 43 characters."""
PUBLIC_ID_BYTES = 6
"""Enough that of 100,000 keys two hardly ever have the same public id."""

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_CHECKSUM_LENGTH = 6
"""Enough for the 32 bits of a CRC in base 62."""
_LENGTH = len(PREFIX) + 43 + _CHECKSUM_LENGTH


def new_key() -> str:
    """A new key: the prefix, 43 random characters, 6 of checksum over both."""
    body = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return body + _checksum(body)


def has_good_checksum(credential: str) -> bool:
    """Whether `new_key` could have made this; a leak scanner and a typing error need no database to be told apart."""
    if len(credential) != _LENGTH or not credential.startswith(PREFIX) or not credential.isascii():
        return False
    return _checksum(credential[:-_CHECKSUM_LENGTH]) == credential[-_CHECKSUM_LENGTH:]


def digest(credential: str) -> str:
    """The SHA-256 of a credential in hexadecimal, which is all that is ever stored of it.

    A fast hash is right for 256 random bits; a slow one would let anybody with wrong keys occupy the processor.
    """
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


def new_public_id() -> str:
    """A new random id that stands for a key in logs, metrics and listings: 12 hexadecimal digits."""
    return secrets.token_hex(PUBLIC_ID_BYTES)


def owner(digest: str) -> str:
    """The name under which journals remember the idempotency keys of a key's holder. It is never shown.

    It is derived from the key: a repeat is recognized after a restart, on every node, and across an upgrade from versions that
    used these digits as the public id.
    """
    return digest[:8]


def _checksum(body: str) -> str:
    rest = zlib.crc32(body.encode("ascii"))
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        rest, digit = divmod(rest, 62)
        digits = _BASE62[digit] + digits
    return digits
