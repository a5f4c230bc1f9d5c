"""What `metrics-service doctor` is told of the keys."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import Finding, Item, Level, look_at_mode, looking_at
from plugins.extensions.api_keys.preshared import MINIMUM_LENGTH, PreSharedKey
from plugins.extensions.api_keys.store import FOR_FINDINGS, KeyRow

_DIGEST = re.compile(r"[0-9a-f]{64}")


def key_findings(id: str, database: Path | None, shared: Sequence[PreSharedKey], advice: str) -> Iterator[Finding]:
    """Of those in the database, read without a service, and of those from outside. `advice` says how to make a key."""
    where = f"extensions.{id}"
    for key in shared:
        if key.weak:
            what = f"has fewer than {MINIMUM_LENGTH} characters and can be guessed"
            yield Finding(
                Level.WARNING, Item.KEYS, key.source, what, f"metrics-service keys create --service {key.service}"
            )
        if key.file is not None:
            yield from look_at_mode(key.source, key.file, Item.KEYS)
    try:
        rows = _rows(database) if database else []
    except (sqlite3.Error, OSError) as error:
        what = f"the keys in {database} cannot be read: {getattr(error, 'strerror', None) or error}"
        yield Finding(Level.PROBLEM, Item.KEYS, where, what, "run migrate up, and doctor as the user of the service")
        return
    if not all(_DIGEST.fullmatch(row.digest) for row in rows):
        what = f"{database} holds what is no SHA-256 of a key, perhaps a key"
        yield Finding(Level.PROBLEM, Item.KEYS, where, what, "revoke it and make another")
    good = len(shared) + sum(row.good_until > time.time() for row in rows)
    if good:
        stored = "; of those in the database only the SHA-256 is stored" if database else ""
        yield Finding(Level.OK, Item.KEYS, where, f"{good} good keys{stored}")
    else:
        yield Finding(Level.PROBLEM, Item.KEYS, where, "there is no good key, so every push is refused", advice)


def _rows(database: Path) -> list[KeyRow]:
    if not database.exists():
        return []
    with looking_at(database) as connection:
        return [KeyRow(*row) for row in connection.execute(FOR_FINDINGS)]
