"""A started database, and retention over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plugins.extensions.database.extension import DatabaseExtension
from plugins.extensions.retention.extension import RetentionConfig, RetentionExtension
from tests.plugins.extensions.databases import started_database
from tests.plugins.extensions.retention.helpers import NOW


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[DatabaseExtension]:
    async with started_database(tmp_path / "a.db", connection_timeout=0.2) as database:
        yield database


@pytest.fixture
async def retention(database: DatabaseExtension) -> RetentionExtension:
    """Started, at `NOW`, by a clock that stands still."""
    retention = RetentionExtension("retention", RetentionConfig(), database.host)
    retention.wall_clock = NOW.timestamp
    retention.monotonic = lambda: 100.0
    await retention.start()
    return retention
