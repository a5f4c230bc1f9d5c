"""Keeps what components derive from data, with the cursor that says how far into it they have got, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from pipeline import Database, State

RECORDS = 250
"""Records a statement; see the exporter `sqlite` for why not `executemany`."""


class StateTable(Database, State):
    """`State` in the tables `exporter_cursors` and `component_records` of the database that this is."""

    async def load(self, owner: str) -> tuple[dict[str, int], dict[str, bytes]]:
        """See `State.load`."""
        positions = await self.read("SELECT pipeline, position FROM exporter_cursors WHERE exporter = ?", (owner,))
        records = await self.read("SELECT name, record FROM component_records WHERE owner = ?", (owner,))
        return dict(positions), dict(records)

    async def save(self, owner: str, positions: Mapping[str, int], changed: Mapping[str, bytes]) -> None:
        """See `State.save`."""
        async with self.transaction() as connection:
            rows = iter(changed.items())
            while chunk := list(islice(rows, RECORDS)):
                values = [value for name, record in chunk for value in (owner, name, record)]
                await connection.execute(_replace("component_records", len(chunk)), values)
            for pipeline, position in positions.items():
                await connection.execute(_replace("exporter_cursors", 1), (owner, pipeline, position))


def _replace(table: str, rows: int) -> str:
    return f"REPLACE INTO {table} VALUES {', '.join(['(?, ?, ?)'] * rows)}"  # noqa: S608 - constants only
