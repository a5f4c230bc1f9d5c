"""The tables of the keys: `api_keys` and `api_key_usage_log`. The only place that knows their columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import aiosqlite

from pipeline import Database
from plugins.extensions.api_keys.keys import new_public_id

FOR_AUTHENTICATION = (
    "SELECT id, key_hash, service_name, is_active, rate_limit, scopes, expires_at, public_id FROM api_keys"
)
FOR_FINDINGS = FOR_AUTHENTICATION.replace("public_id", "''")
"""The same, also from a database that has no public ids yet."""
_FOR_LISTING = (
    "SELECT id, public_id, service_name, is_active, rate_limit, scopes, expires_at, last_used_at, usage_count, description"
    " FROM api_keys"
)
_COPY = (
    "INSERT INTO api_keys (key_hash, service_name, created_at, scopes, rate_limit, expires_at, description)"
    " SELECT ?, service_name, ?, scopes, rate_limit, ?, description FROM api_keys WHERE id = ?"
)
_PRESHARED = "SELECT key_hash, public_id FROM preshared_key_ids"
_NAME_PRESHARED = (
    "INSERT OR IGNORE INTO preshared_key_ids SELECT ?, coalesce((SELECT public_id FROM api_keys WHERE key_hash = ?), ?)"
)
# The service's name is taken from the key's row, so that nothing is logged for a key that was deleted meanwhile.
_LOG = (
    "INSERT INTO api_key_usage_log (api_key_id, service_name, event, hour, count)"
    " SELECT id, service_name, ?, ?, ? FROM api_keys WHERE id = ?"
    " ON CONFLICT (api_key_id, event, hour) DO UPDATE SET count = count + excluded.count"
)


class KeyRow(NamedTuple):
    """What is needed to let a key in. Columns of `api_keys`, as SQLite gives them."""

    id: int
    digest: str
    service: str
    is_active: int
    rate_limit: int | None
    scopes: str
    expires_at: str | None
    public_id: str

    @property
    def good_until(self) -> float:
        """The wall-clock time in seconds at which the key ceases to be good; 0 if it is good no more.

        A time that cannot be read counts as past.
        """
        if not self.is_active:
            return 0.0
        if self.expires_at is None:
            return float("inf")
        try:
            expires = datetime.fromisoformat(self.expires_at)
        except ValueError:
            return 0.0
        return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp()


class KeyListing(NamedTuple):
    """One key, as a person wants to see it."""

    id: int
    public_id: str
    service: str
    is_active: int
    rate_limit: int | None
    scopes: str
    expires_at: str | None
    last_used_at: str | None
    usage_count: int
    description: str


class Usage(NamedTuple):
    """How often the key with this id was used and refused since the last time, and when it was used last."""

    id: int
    used: int
    refused: int
    last_used: datetime


class KeyTable:
    """Reads and writes the keys through the one who owns the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rows(self) -> list[KeyRow]:
        """All keys, for authentication."""
        return [KeyRow(*row) for row in await self._database.read(FOR_AUTHENTICATION)]

    async def find(self, digest: str) -> KeyRow | None:
        """The key with this digest."""
        rows = await self._database.read(f"{FOR_AUTHENTICATION} WHERE key_hash = ?", (digest,))
        return KeyRow(*rows[0]) if rows else None

    async def listing(self) -> list[KeyListing]:
        """All keys, for people, oldest first."""
        return [KeyListing(*row) for row in await self._database.read(f"{_FOR_LISTING} ORDER BY id")]

    async def public_id(self, id: int) -> str:
        """The public id of the key with this id."""
        ((public_id,),) = await self._database.read("SELECT public_id FROM api_keys WHERE id = ?", (id,))
        return str(public_id)

    async def preshared_ids(self, digests: Collection[str]) -> dict[str, str]:
        """The public id of each pre-shared key, by its digest. A key without one gets a new id, which is stored.

        Raises one of `sqlite3.Error` and `TimeoutError` if the database cannot be read, or not written where it must be.
        """
        found = dict(await self._database.read(_PRESHARED))
        if missing := [digest for digest in digests if digest not in found]:
            async with self._database.transaction() as connection:
                for digest in missing:
                    await connection.execute(_NAME_PRESHARED, (digest, digest, new_public_id()))
                rows = await connection.execute_fetchall(_PRESHARED)
            found = {row[0]: row[1] for row in rows}
        return {digest: found[digest] for digest in digests}

    async def add(
        self,
        digest: str,
        service: str,
        scopes: Sequence[str],
        rate_limit: int | None,
        expires_at: datetime | None,
        description: str,
        now: datetime,
    ) -> int:
        """Store a new key and log that it was created, in one transaction. Gives its id."""
        row = (digest, service, timestamp(now), " ".join(scopes), rate_limit, timestamp(expires_at), description)
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                "INSERT INTO api_keys (key_hash, service_name, created_at, scopes, rate_limit, expires_at, description)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            assert cursor.lastrowid is not None
            await _log(connection, cursor.lastrowid, "created", 1, now)
            return cursor.lastrowid

    async def rotate(
        self, id: int, digest: str, expires_at: datetime | None, overlap: timedelta, now: datetime
    ) -> tuple[int, KeyListing] | None:
        """Store a key that may do what the key with this id may, and have that one expire after the overlap, if it does not sooner.

        One transaction. Gives the new id and the old key as it is now; None, and nothing is changed, if the old key is not there
        or not good any more.
        """
        async with self._database.transaction() as connection:
            found = await connection.execute_fetchall(f"{FOR_AUTHENTICATION} WHERE id = ?", (id,))
            old = next((KeyRow(*row) for row in found), None)
            if old is None or old.good_until <= now.timestamp():
                return None
            cursor = await connection.execute(_COPY, (digest, timestamp(now), timestamp(expires_at), id))
            assert cursor.lastrowid is not None
            end = now + overlap
            if end.timestamp() < old.good_until:
                await connection.execute("UPDATE api_keys SET expires_at = ? WHERE id = ?", (timestamp(end), id))
            await _log(connection, cursor.lastrowid, "created", 1, now)
            (row,) = await connection.execute_fetchall(f"{_FOR_LISTING} WHERE id = ?", (id,))
            return cursor.lastrowid, KeyListing(*row)

    async def revoke(self, id: int, now: datetime) -> bool:
        """Make the key inactive for good and log it. Gives whether there is such a key; a second time changes nothing."""
        async with self._database.transaction() as connection:
            cursor = await connection.execute("UPDATE api_keys SET is_active = 0 WHERE id = ? AND is_active = 1", (id,))
            if cursor.rowcount:
                await _log(connection, id, "revoked", 1, now)
                return True
            return bool(await connection.execute_fetchall("SELECT 1 FROM api_keys WHERE id = ?", (id,)))

    async def add_usage(self, usages: Iterable[Usage], now: datetime) -> None:
        """Add to the counters and to the log of this hour, in one transaction."""
        async with self._database.transaction() as connection:
            for usage in usages:
                if usage.used:
                    await connection.execute(
                        "UPDATE api_keys SET usage_count = usage_count + ?, last_used_at = ? WHERE id = ?",
                        (usage.used, timestamp(usage.last_used), usage.id),
                    )
                    await _log(connection, usage.id, "used", usage.used, now)
                if usage.refused:
                    await _log(connection, usage.id, "refused", usage.refused, now)


def timestamp(moment: datetime | None) -> Any:
    """A time as the tables hold it."""
    return moment and moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def _log(connection: aiosqlite.Connection, id: int, event: str, count: int, now: datetime) -> None:
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    await connection.execute(_LOG, (event, timestamp(hour), count, id))
