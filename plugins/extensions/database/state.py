"""Saved state as earlier versions kept it, in the database. It is copied from here once (docs/decisions/0025-saved-state.md)."""

from __future__ import annotations

import sqlite3

from pipeline import Database, FormerState, Position, StateError


class StateTable(Database, FormerState):
    """`FormerState` in the tables `exporter_cursors` and `component_records` of the database that this is. Nothing is written there."""

    async def load(self, owner: str) -> tuple[dict[str, Position], dict[str, bytes]]:
        """See `FormerState.load`."""
        try:
            positions = await self.read(
                "SELECT pipeline, max(position) FROM exporter_cursors WHERE exporter = ? GROUP BY pipeline", (owner,)
            )
            records = await self.read("SELECT name, record FROM component_records WHERE owner = ?", (owner,))
        except (sqlite3.Error, TimeoutError) as error:
            raise StateError(f"{self.path}: {error}") from error
        return {pipeline: Position(position) for pipeline, position in positions}, dict(records)
