"""The public id of a key: random, kept, the same on every node, and never derived from the key."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from plugins.extensions.api_keys.keys import digest, owner
from plugins.extensions.api_keys.preshared import preshared_keys
from plugins.extensions.database.migration_files import load_migrations
from tests.leaks import digests_shown, secret
from tests.plugins.extensions.api_keys.running import key_store, make_key, query
from tests.reloading import reload
from tests.running import ADMIN_KEY, KEY, running

pytestmark = pytest.mark.anyio

PRESHARED = secret("a-preshared-key-of-more-than-32-characters")
OTHER = secret("another-preshared-key-of-more-than-32-characters")
ENVIRON = {"METRICS_API_KEY_A": PRESHARED}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


async def test_both_kinds_of_keys_keep_their_ids_after_a_restart(path: Path) -> None:
    async with key_store(path, environ=ENVIRON) as store:
        _, made = await make_key(store)
        before = [(await store.authenticate(each)).key_id for each in (made, PRESHARED)]
    async with key_store(path, environ=ENVIRON) as store:
        assert [(await store.authenticate(each)).key_id for each in (made, PRESHARED)] == before


async def test_two_nodes_on_one_database_show_the_same_id(path: Path) -> None:
    async with key_store(path, environ=ENVIRON) as store:
        mine = (await store.authenticate(PRESHARED)).key_id
        digests = [digest(PRESHARED)]
        async with key_store(path, is_service=False) as other:
            assert await other.table.preshared_ids(digests) == {digests[0]: mine}


async def test_a_key_in_both_places_has_one_id(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store)
        made = (await store.authenticate(key)).key_id
    async with key_store(path, environ={"METRICS_API_KEY_A": key}) as store:
        assert (await store.authenticate(key)).key_id == made
    async with key_store(path, environ=ENVIRON) as store:
        shared = (await store.authenticate(PRESHARED)).key_id
        await store.table.add(digest(PRESHARED), "a", ("ingest",), None, None, "", store._now())
    assert query(path, f"SELECT public_id FROM api_keys WHERE key_hash = '{digest(PRESHARED)}'") == [(shared,)]


async def test_a_row_that_another_program_inserts_has_an_id(path: Path) -> None:
    async with key_store(path) as store:
        columns = "key_hash, service_name, created_at"
        query(path, f"INSERT INTO api_keys ({columns}) VALUES ('{digest(OTHER)}', 'a', '2026-01-01')")
        await store.refresh()
        assert len((await store.authenticate(OTHER)).key_id) == 12


async def test_a_key_of_a_reload_has_an_id_that_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        assert await reload(service, METRICS_API_KEY_NEW=OTHER)
        found = service.rows(f"SELECT public_id FROM preshared_key_ids WHERE key_hash = '{digest(OTHER)}'")
        ((public,),) = found
        assert f'key="{public}"' in await service.scrape()


async def test_a_database_that_cannot_be_written_costs_no_key(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with key_store(path):
        pass
    async with key_store(path, environ=ENVIRON, is_service=False, connection_timeout=0.1) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as locking:
            locking.execute("BEGIN IMMEDIATE")
            ids = await store._public_ids(preshared_keys(ENVIRON, "METRICS_API_KEY_", None, None))
    assert list(ids) == [digest(PRESHARED)]
    assert "cannot store public ids of pre-shared keys" in caplog.text


async def test_the_migration_gives_keys_of_earlier_versions_ids(path: Path) -> None:
    keys = [digest(each) for each in (PRESHARED, OTHER)]
    (migration,) = (each for each in load_migrations() if each.name == "public_key_ids")
    earlier = [each for each in load_migrations() if each.version < migration.version]
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in (statement for each in earlier for statement in each.up):
            connection.execute(statement)
        for key in keys:
            connection.execute("INSERT INTO api_keys (key_hash, service_name, created_at) VALUES (?, 'a', '')", (key,))
        for statement in migration.up:
            connection.execute(statement)
        ids = {id for (id,) in connection.execute("SELECT public_id FROM api_keys")}
        assert len(ids) == 2
        assert {len(id) for id in ids} == {12}
        for statement in migration.down:
            connection.execute(statement)
        assert connection.execute("SELECT count(*) FROM api_keys").fetchall() == [(2,)]


async def shown_without_a_key(service: httpx.AsyncClient, scraped: str) -> str:
    """All that the service answers to somebody without a key, errors included."""
    service.headers.pop("X-API-Key")
    pages = ["/", "/health", "/health/live", "/health/ready", "/openapi.json", "/docs", "/metrics", "/flush", "/gone"]
    answers = [await service.get(page) for page in pages]
    answers += [await service.post(page, headers={"X-API-Key": KEY[:-1]}) for page in ("/metrics", "/flush")]
    answers += [await service.get(scraped)]
    return "\n".join(f"{each.headers} {each.text}" for each in answers)


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_nothing_derived_from_a_key_is_shown_without_a_key(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, f"receivers.http.server={server}") as service:
        made = await service.make_key()
        for key in (KEY, made):
            await service.push({"type": "auth_request", "value": 1})
            await service.client.get("/rate-limit", headers={"X-API-Key": key})
        shown = await shown_without_a_key(service.client, service.scraped)
    assert 'service="test"' in shown
    for key in (KEY, ADMIN_KEY, made):
        assert digest(key)[:8] not in shown
    assert list(digests_shown(shown.encode(), (KEY, ADMIN_KEY, made))) == []


async def test_an_id_of_digits_of_the_digest_would_be_found(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        path = service.database
    # As if the id were a part of the digest, as in earlier versions.
    query(path, f"UPDATE preshared_key_ids SET public_id = '{owner(digest(KEY))}' WHERE key_hash = '{digest(KEY)}'")
    async with running(tmp_path) as service:
        with pytest.raises(AssertionError, match="a digest of a key is shown"):
            await service.scrape()


async def test_a_repeat_across_the_upgrade_is_recognized(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "again"}
    body = {"service": "test", "metrics": [{"type": "auth_request", "value": 1}]}
    async with running(tmp_path) as service:
        assert (await service.client.post("/metrics", json=body, headers=headers)).status_code == 200
    # As earlier versions owned them: the first digits of the digest.
    assert query(tmp_path / "metrics-journal" / "events.db", "SELECT owner FROM idempotency") == [(digest(KEY)[:8],)]
    # Another id, as on a node without this database.
    query(tmp_path / "metrics.db", "UPDATE preshared_key_ids SET public_id = 'fedcba987654'")
    async with running(tmp_path) as service:
        answer = await service.client.post("/metrics", json=body, headers=headers)
        assert answer.headers["Idempotent-Replay"] == "true"
        await service.flush()
        assert service.rows() == [(1,)]
