"""The key store on a real database, as the service has it and as a command beside the service has it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.testing import NopHost
from plugins.extensions.api_keys.extension import ApiKeys, ApiKeysConfig
from plugins.extensions.api_keys.keys import digest, new_key
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension
from tests.leaks import secret, secrets_of


@asynccontextmanager
async def key_store(
    path: Path,
    *,
    is_service: bool = True,
    environ: Mapping[str, str] | None = None,
    connection_timeout: float = 5,
    **config: Any,
) -> AsyncIterator[ApiKeys]:
    """A key store that has started, on the database at `path`. Its host is a `NopHost`, which runs no task."""
    secrets_of(environ or {})
    host = NopHost(is_service=is_service, environ=environ)
    database = DatabaseExtension("database", DatabaseConfig(path=path, connection_timeout=connection_timeout), host)
    host.extensions.append(database)
    store = ApiKeys("api_keys", ApiKeysConfig(**config), host)
    host.extensions.append(store)
    try:
        await database.start()
        await store.start()
        yield store
    finally:
        await store.stop()
        await database.stop()


async def make_key(
    store: ApiKeys,
    service: str = "auth-server",
    *,
    scopes: tuple[str, ...] = ("ingest",),
    rate_limit: int | None = None,
    expires_at: datetime | None = None,
) -> tuple[int, str]:
    """A new key in the table, as `keys create` makes it: its id and the key."""
    key = secret(new_key())
    return await store.table.add(digest(key), service, scopes, rate_limit, expires_at, "", datetime.now(UTC)), key


async def make_key_elsewhere(path: Path, service: str = "auth-server", **options: Any) -> tuple[int, str]:
    """A new key, made by another process beside the service."""
    async with key_store(path, is_service=False) as other:
        return await make_key(other, service, **options)


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What any SQLite client sees; what it writes is committed."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()
