"""Reads a journal's file back, for exporters that are behind what is kept in memory, on a connection that cannot write."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
import anyio
import msgspec

from pipeline.data import Batch
from pipeline.journal_format import Group, Unreadable, decode_group, is_right
from pipeline.memory import cost_of
from pipeline.salvage import is_damage

READ_ROWS = 256
READ_ITEMS = 20_000
READ_COST = 16 * 2**20
"""What one read from disk brings at the most, unless one row is larger."""


class JournalReader:
    """Reads groups back for exporters that are behind what is kept in memory."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._connection: aiosqlite.Connection | None = None
        self._file = 0
        self._reading = anyio.Lock()  # so that nobody's connection is closed while he reads

    async def open(self) -> None:
        """Open the file, which the committer has made. Raises `sqlite3.Error` or `OSError`, and then all is as it was."""
        file = self._path.stat().st_ino
        with anyio.CancelScope(shield=True):
            connection = await aiosqlite.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
            try:
                await connection.execute_fetchall("SELECT last FROM state")  # SQLite opens it when it is first asked
            except BaseException:
                await connection.close()
                raise
        self._connection, self._file = connection, file

    async def close(self) -> None:
        """Close it. Safe twice and without `open`."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    @asynccontextmanager
    async def _current(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._reading:
            assert self._connection is not None
            if self._path.stat().st_ino != self._file:  # it was damaged, and another took its place
                before = self._connection
                await self.open()
                with anyio.CancelScope(shield=True):
                    await before.close()
            yield self._connection

    async def read(self, after: int, upto: int, most_cost: int = READ_COST) -> list[Group]:
        """Some groups that hold what follows `after`, none beyond `upto`, within the limits above.

        Decoding stops with the first batch that makes them cost more than `most_cost` bytes of memory. There is always one batch.

        What is damaged comes as a group without batches. Raises `sqlite3.Error` or `OSError` if the file cannot be read now.
        """
        async with self._current() as connection:
            rows = await connection.execute_fetchall(
                # No payload is read here: it may be large, or on a page that cannot be read.
                """SELECT first, count, items, crc FROM (
                       SELECT first, count, items, crc, sum(items) OVER earlier AS items_before,
                           sum(length(payload)) OVER earlier AS bytes_before FROM journal
                       WHERE first >= coalesce((SELECT max(first) FROM journal WHERE first <= ?), 0) AND first <= ?
                           AND first + count > ?
                       WINDOW earlier AS (ORDER BY first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                       ORDER BY first LIMIT ?)
                   WHERE coalesce(items_before, 0) < ? AND coalesce(bytes_before, 0) < ? ORDER BY first""",
                (after + 1, upto, after + 1, READ_ROWS, READ_ITEMS, most_cost),
            )
            groups: list[Group] = []
            for first, count, items, crc in rows:
                group = await self._group(connection, first, count, items, crc, after, most_cost)
                groups.append(group)
                most_cost -= sum(group.costs)
                if most_cost <= 0 or group.last < first + count - 1:
                    break
        return groups or [Group(after + 1, upto, (), 0, 0)]

    async def next_to_replay(self, after: int, exporters: Sequence[str]) -> tuple[int, str, bytes] | None:
        """The first dead letter with a higher id that is to be handed again to one of these: its id, its exporter, its payload.

        Raises `sqlite3.Error` or `OSError`.
        """
        async with self._current() as connection:
            rows = await connection.execute_fetchall(
                f"""SELECT id, exporter, payload FROM dead_letters
                    WHERE replay = 1 AND id > ? AND exporter IN ({", ".join("?" * len(exporters))}) ORDER BY id LIMIT 1""",  # noqa: S608
                (after, *exporters),
            )
        return next(((id, exporter, payload) for id, exporter, payload in rows), None)

    async def _group(
        self, connection: aiosqlite.Connection, first: int, count: int, items: int, crc: int, after: int, most_cost: int
    ) -> Group:
        last = first + count - 1
        try:
            # One row at a time: a page that cannot be read costs the row that it is in.
            row = list(await connection.execute_fetchall("SELECT payload FROM journal WHERE first = ?", (first,)))
            payload = row[0][0] if row else b""
            if not is_right(first, count, items, crc, payload):
                raise ValueError("its checksum is wrong" if payload else "it was lost before")
            skipped = max(0, after + 1 - first)
            batches, costs = await anyio.to_thread.run_sync(_decode_within, payload, items, skipped, most_cost)
            first += skipped
            return Group(first, first + len(batches) - 1, batches, sum(map(len, batches)), len(payload), costs)
        except (ValueError, msgspec.MsgspecError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and not is_damage(error):
                raise  # an I/O error may pass: what was accepted is not given up for that
            self._log.error("set aside a damaged record: positions %d to %d, %d items: %s", first, last, items, error)
            return Group(first, last, (), items, 0)


def _decode_within(
    payload: bytes, items: int, skipped: int, most_cost: int
) -> tuple[Sequence[Batch | Unreadable], list[int]]:
    """The batches of a row behind so many, and what they cost, until that is more than `most_cost`. Raises `msgspec.MsgspecError`."""
    costs: list[int] = []
    left = most_cost

    def is_enough(batch: Batch | Unreadable) -> bool:
        nonlocal left
        costs.append(len(batch.payload) if isinstance(batch, Unreadable) else cost_of(batch))
        left -= costs[-1]
        return left < 0

    return decode_group(payload, items, skipped, is_enough), costs
