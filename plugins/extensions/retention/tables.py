"""What is old in the tables of the database, by their policies, and deleting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline import Database, Invalid

CHUNK = 5_000
"""Rows deleted in one transaction: few, since whoever stores waits for it (docs/decisions/0007-one-connection-writes.md)."""

LARGE_CLEANUP = 10_000
"""Rows. A cleanup that deletes more, and more than half of a table, needs a person."""
NOTE_EVERY = 60.0
"""Seconds between two writes of the time of a cleanup."""

_LENGTHS = {"hour": 13, "date": 10}
"""How much of a time a column of whole hours or days is compared with, so that a sum goes only when all of it is old."""

# A table that was not made yet may have a policy already.
_POLICIES = """
SELECT table_name, coalesce(retention_days, ?), is_active, timestamp_column FROM retention_policies
WHERE table_name IN (SELECT name FROM sqlite_schema WHERE type = 'table') ORDER BY table_name
"""
_LAST_RUNS = "SELECT table_name, retention_days, at FROM retention_runs"
_PRIMARY_KEY = "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk"


@dataclass(frozen=True)
class Policy:
    """How long the rows of one table are kept, in days, by which of its columns."""

    table: str
    retention_days: int
    is_active: bool
    timestamp_column: str

    def cutoff(self, now: float) -> str:
        """The time before which a row is old, as text, `now` being seconds since 1970."""
        return self.begins(now).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    @property
    def applied_days(self) -> int:
        """The same number, or 0 while the policy is not active."""
        return self.retention_days if self.is_active else 0

    def begins(self, now: float) -> datetime:
        """The time before which a row is old, `now` being seconds since 1970."""
        return datetime.fromtimestamp(now, UTC) - timedelta(days=self.retention_days)

    def old(self, now: float) -> tuple[str, str]:
        """The condition that old rows meet, and its parameter."""
        cutoff = self.cutoff(now)[: _LENGTHS.get(self.timestamp_column)]
        return f"{_quoted(self.timestamp_column)} < ?", cutoff

    def answer(self) -> dict[str, Any]:
        """As docs/api.md shows it."""
        return {
            "table_name": self.table,
            "retention_days": self.retention_days,
            "is_active": self.is_active,
            "timestamp_column": self.timestamp_column,
        }


@dataclass(frozen=True)
class LastRun:
    """The last cleanup of one table that was not stopped."""

    retention_days: int | None
    """The policy that it applied, in days; 0 if the policy was not active, None if there was no cleanup yet."""
    at: datetime
    """When it was; before the first cleanup, the time of the newest row when retention first saw the table."""

    def is_outdated(self, policy: Policy, now: float) -> bool:
        """Whether a cleanup by this policy, `now` being seconds since 1970, is worth a write."""
        age = abs(now - self.at.timestamp())
        return self.retention_days != policy.applied_days or age > NOTE_EVERY


class Tables:
    """The tables that have a policy. `default_days` is for those whose policy names no number of days.

    The names of tables and columns in the SQL below come from `retention_policies` and the schema, never from a request.
    """

    def __init__(self, database: Database, default_days: int) -> None:
        self._database = database
        self.default_days = default_days

    async def policies(self) -> dict[str, Policy]:
        """All policies, by table."""
        rows = await self._database.read(_POLICIES, (self.default_days,))
        return {table: Policy(table, days, bool(active), column) for table, days, active, column in rows}

    async def policy(self, table: str) -> Policy:
        """The policy of one table. Raises `Invalid` if it has none."""
        policies = await self.policies()
        if table not in policies:
            raise Invalid(f"table_name: {table!r} has no retention policy (tables: {', '.join(policies)})")
        return policies[table]

    async def change(self, table: str, columns: Mapping[str, Any]) -> None:
        """Set columns of a policy: `retention_days` (None: the default), `is_active`."""
        values = {**columns, "updated_at": datetime.now(UTC).isoformat()}
        settings = ", ".join(f"{_quoted(column)} = ?" for column in values)
        async with self._database.transaction() as connection:
            await connection.execute(
                f"UPDATE retention_policies SET {settings} WHERE table_name = ?",  # noqa: S608
                (*values.values(), table),
            )

    async def preview(self, policy: Policy, now: float) -> dict[str, Any]:
        """What a cleanup would delete, as docs/api.md shows it; nothing while the policy is not active."""
        condition, cutoff = policy.old(now)
        table, column = _quoted(policy.table), _quoted(policy.timestamp_column)
        ((total, old, oldest, newest),) = await self._database.read(
            f"SELECT (SELECT count(*) FROM {table}), count(*), min({column}), max({column})"  # noqa: S608
            f" FROM {table} WHERE {condition} AND ?",
            (cutoff, policy.is_active),
        )
        return {
            "retention_days": policy.retention_days,
            "records_to_delete": old,
            "total_records": total,
            "oldest_record_to_delete": oldest,
            "newest_record_to_delete": newest,
            "cutoff_date": policy.cutoff(now),
            "percentage_to_delete": round(100 * old / total, 2) if total else 0.0,
        }

    async def delete_old(self, policy: Policy, now: float) -> int:
        """Delete the old rows, in chunks between which others write. Gives how many."""
        condition, cutoff = policy.old(now)
        table = _quoted(policy.table)
        if not await self.has_old(policy, now):
            return 0  # without having held the write lock while looking
        key = ", ".join(_quoted(name) for (name,) in await self._database.read(_PRIMARY_KEY, (policy.table,)))
        delete = (
            f"DELETE FROM {table} WHERE ({key}) IN"  # noqa: S608
            f" (SELECT {key} FROM {table} WHERE {condition} LIMIT {CHUNK})"
        )
        total = 0
        while True:
            async with self._database.transaction() as connection:
                deleted = (await connection.execute(delete, (cutoff,))).rowcount
            total += deleted
            if deleted < CHUNK:
                return total

    async def last_runs(self) -> dict[str, LastRun]:
        """The last cleanup of each table that has had one or was seen by `note_seen`."""
        rows = await self._database.read(_LAST_RUNS)
        return {table: LastRun(days, datetime.fromisoformat(at)) for table, days, at in rows}

    async def note_seen(self, policy: Policy, now: float) -> LastRun:
        """Store the time of the table's newest row, or `now` for an empty table, where no cleanup is stored yet."""
        table, column = _quoted(policy.table), _quoted(policy.timestamp_column)
        ((newest,),) = await self._database.read(f"SELECT max({column}) FROM {table}")  # noqa: S608
        moment = datetime.fromtimestamp(now, UTC)
        at = moment if newest is None else min(moment, _parsed(newest, moment))
        await self._store_run("INSERT OR IGNORE", policy.table, LastRun(None, at))
        return LastRun(None, at)

    async def note_run(self, policy: Policy, now: float) -> None:
        """Store that the table was cleaned up by this policy, `now` being seconds since 1970."""
        await self._store_run("REPLACE", policy.table, LastRun(policy.applied_days, datetime.fromtimestamp(now, UTC)))

    async def _store_run(self, verb: str, table: str, run: LastRun) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                f"{verb} INTO retention_runs VALUES (?, ?, ?)", (table, run.retention_days, run.at.isoformat())
            )

    async def has_old(self, policy: Policy, now: float) -> bool:
        """Whether the table has a row that is old."""
        condition, cutoff = policy.old(now)
        query = f"SELECT 1 FROM {_quoted(policy.table)} WHERE {condition} LIMIT 1"  # noqa: S608
        return bool(await self._database.read(query, (cutoff,)))

    async def is_large(self, policy: Policy, now: float) -> bool:
        """Whether a cleanup would delete more than half of the table and more than `LARGE_CLEANUP` rows.

        Counts the old rows, and of the others no more than there are old ones.
        """
        condition, cutoff = policy.old(now)
        table = _quoted(policy.table)
        ((old,),) = await self._database.read(f"SELECT count(*) FROM {table} WHERE {condition}", (cutoff,))  # noqa: S608
        if old <= LARGE_CLEANUP:
            return False
        ((kept,),) = await self._database.read(
            f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE NOT ({condition}) LIMIT ?)",  # noqa: S608
            (cutoff, old),
        )
        return bool(kept < old)

    async def statistics(self, policy: Policy) -> dict[str, Any]:
        """How many rows there are, from when, and how many a day."""
        column = _quoted(policy.timestamp_column)
        ((rows, oldest, newest, per_day),) = await self._database.read(
            f"SELECT count(*), min({column}), max({column}),"  # noqa: S608
            f" round(count(*) / max(1.0, julianday(max({column})) - julianday(min({column}))), 1)"
            f" FROM {_quoted(policy.table)}"
        )
        return {"rows": rows, "oldest": oldest, "newest": newest, "rows_per_day": per_day or 0.0}


def _parsed(time: str, otherwise: datetime) -> datetime:
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        return otherwise
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
