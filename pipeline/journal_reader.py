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

from pipeline.journal_format import Group, decode_group, is_right
from pipeline.salvage import is_damage

READ_ROWS = 256
READ_ITEMS = 20_000
READ_BYTES = 16 * 2**20
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

    async def read(self, after: int, upto: int) -> list[Group]:
        """Some groups that hold what follows `after`, none beyond `upto`, within the limits above.

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
                (after + 1, upto, after + 1, READ_ROWS, READ_ITEMS, READ_BYTES),
            )
            groups = [await self._group(connection, *row) for row in rows]
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

    async def _group(self, connection: aiosqlite.Connection, first: int, count: int, items: int, crc: int) -> Group:
        last = first + count - 1
        try:
            # One row at a time: a page that cannot be read costs the row that it is in.
            row = list(await connection.execute_fetchall("SELECT payload FROM journal WHERE first = ?", (first,)))
            payload = row[0][0] if row else b""
            if not is_right(first, count, items, crc, payload):
                raise ValueError("its checksum is wrong" if payload else "it was lost before")
            batches = await anyio.to_thread.run_sync(decode_group, payload, items)
            return Group(first, last, batches, sum(map(len, batches)), len(payload))
        except (ValueError, msgspec.MsgspecError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and not is_damage(error):
                raise  # an I/O error may pass: what was accepted is not given up for that
            self._log.error("set aside a damaged record: positions %d to %d, %d items: %s", first, last, items, error)
            return Group(first, last, (), items, 0)
