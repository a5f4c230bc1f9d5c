"""A real database for tests of what stores something in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pipeline.testing import NopHost
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension


def make_database(path: Path, *, is_service: bool = True, **config: Any) -> DatabaseExtension:
    """A database that is not started."""
    host = NopHost(is_service=is_service)
    database = DatabaseExtension("database", DatabaseConfig(path=path, **config), host)
    host.extensions.append(database)
    return database


@asynccontextmanager
async def started_database(path: Path, *, is_service: bool = True, **config: Any) -> AsyncIterator[DatabaseExtension]:
    """A database that is started, and stopped at the end; `database.host` knows it."""
    database = make_database(path, is_service=is_service, **config)
    try:
        await database.start()
        yield database
    finally:
        await database.stop()
