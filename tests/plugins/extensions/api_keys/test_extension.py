"""The key store in one process: who is let in, and what is never shown."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from pipeline import Access, Context, Overloaded, RateLimited, Request, Unauthenticated
from plugins.extensions.api_keys.extension import ApiKeys
from plugins.extensions.api_keys.keys import digest, new_key
from tests.leaks import secret as marked
from tests.plugins.extensions.api_keys.running import key_store, make_key, query

pytestmark = pytest.mark.anyio

PRESHARED = marked("a-preshared-key-of-more-than-32-characters")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


async def refusal_of(store: ApiKeys, credential: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await store.authenticate(credential)
    return str(caught.value)


async def test_a_new_key_works_at_once(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store, "mcp-gateway", scopes=("ingest", "admin"), rate_limit=7)

        caller = await store.authenticate(key)

        assert (caller.service, caller.scopes, caller.bucket.limit) == (
            "mcp-gateway",
            frozenset({"ingest", "admin"}),
            7,
        )
        assert re.fullmatch("[0-9a-f]{12}", caller.key_id)
        assert not digest(key).startswith(caller.key_id[:8])
        assert caller.owner == digest(key)[:8]


async def test_a_key_of_an_earlier_run_works_with_the_configured_limit(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store)
    async with key_store(path, rate_limit=42) as store:
        assert (await store.authenticate(key)).bucket.limit == 42


async def test_a_key_has_one_caller_and_one_bucket(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store, rate_limit=2)
        first = await store.authenticate(key)
        await store.refresh()
        first.bucket.take(2)

        second = await store.authenticate(key)

        assert second is first
        with pytest.raises(RateLimited):
            second.bucket.take(1)


async def test_requests_that_bring_a_new_key_at_the_same_time_are_all_let_in(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store)
        callers = []

        async def call() -> None:
            callers.append(await store.authenticate(key))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(call)

        assert len(callers) == 20
        assert len(set(map(id, callers))) == 1


UNKNOWN = {
    "ours": new_key(),
    "mistyped": new_key()[:-1] + "~",
    "short": "mcp_metrics_short",
    "other": "ключ",
    "half": "\ud800",
    "": "",
}


@pytest.mark.parametrize("credential", UNKNOWN.values(), ids=UNKNOWN)
async def test_an_unknown_key_is_invalid(path: Path, credential: str) -> None:
    async with key_store(path) as store:
        assert await refusal_of(store, credential) == "Invalid API key"


async def test_neither_a_known_key_nor_a_bad_checksum_touches_the_database(path: Path) -> None:
    async with key_store(path, environ={"METRICS_API_KEY_A": PRESHARED}) as store:
        _, key = await make_key(store)
        await store.authenticate(key)
        query(path, "DROP TABLE api_key_usage_log")
        query(path, "DROP TABLE api_keys")
        typing_error = key[:-1] + ("0" if key[-1] != "0" else "1")

        assert (await store.authenticate(key)).service == "auth-server"
        assert (await store.authenticate(PRESHARED)).service == "a"
        assert await refusal_of(store, typing_error) == "Invalid API key"
        with pytest.raises(Overloaded, match="cannot be looked up now"):
            await store.authenticate(new_key())


async def test_a_known_key_is_let_in_without_giving_up_control(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store)
        await store.authenticate(key)

        with pytest.raises(StopIteration):
            store.authenticate(key).send(None)


async def test_a_revoked_key_is_inactive_at_once_and_stays_so(path: Path) -> None:
    async with key_store(path) as store:
        number, key = await make_key(store)
        await store.authenticate(key)

        assert await store.revoke(number)

        assert await refusal_of(store, key) == "API key is inactive"
        await store.refresh()
        assert await refusal_of(store, key) == "API key is inactive"
        assert await store.revoke(number), "twice does no harm"
    async with key_store(path) as store:
        assert await refusal_of(store, key) == "API key is inactive"
    assert query(path, "SELECT event, count FROM api_key_usage_log WHERE event = 'revoked'") == [("revoked", 1)]


async def test_revoking_a_key_that_is_not_there_says_so(path: Path) -> None:
    async with key_store(path) as store:
        assert not await store.revoke(7)


async def test_a_key_is_good_until_the_second_it_expires(path: Path) -> None:
    expires = datetime(2030, 1, 1, tzinfo=UTC)
    async with key_store(path) as store:
        _, key = await make_key(store, expires_at=expires)
        store.wall_clock = lambda: expires.timestamp() - 1
        await store.authenticate(key)

        store.wall_clock = expires.timestamp

        assert await refusal_of(store, key) == "API key is inactive"


@pytest.mark.parametrize(
    ("expires_at", "good"),
    [("2001-01-01", False), ("2999-01-01", True), ("2999-01-01T00:00:00+02:00", True), ("soon", False)],
)
async def test_a_time_of_expiry_that_a_person_wrote_is_understood_or_counts_as_past(
    path: Path, expires_at: str, good: bool
) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store)
        query(path, f"UPDATE api_keys SET expires_at = '{expires_at}'")
        if good:
            await store.authenticate(key)
        else:
            assert await refusal_of(store, key) == "API key is inactive"


async def test_preshared_keys_and_the_admin_key_live_in_memory_only(path: Path) -> None:
    async with key_store(path, environ={"METRICS_API_KEY_MCP_GATEWAY": PRESHARED}, admin_key="A" * 40) as store:
        gateway = await store.authenticate(PRESHARED)
        admin = await store.authenticate("A" * 40)
        await store.refresh()
        assert await store.authenticate(PRESHARED) is gateway

    assert (gateway.service, gateway.scopes, gateway.bucket.limit) == ("mcp-gateway", frozenset({"ingest"}), 1000)
    assert (admin.service, admin.scopes) == ("admin", frozenset({"admin", "ingest"}))
    assert query(path, "SELECT count(*) FROM api_keys") == [(0,)]


async def test_a_key_that_is_both_preshared_and_in_the_table_is_the_preshared_one(path: Path) -> None:
    async with key_store(path) as store:
        number, key = await make_key(store, "stored")
        await store.revoke(number)
    async with key_store(path, environ={"METRICS_API_KEY_OUTSIDE": key}) as store:
        assert (await store.authenticate(key)).service == "outside"
        await store.refresh()
        assert (await store.authenticate(key)).service == "outside"


async def test_a_start_without_any_good_key_warns_with_the_command_that_makes_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with key_store(path) as store:
        number, _ = await make_key(store)
        command = "metrics-service keys create --service NAME, with the --config and --env-file of this service"
        assert command in caplog.text
        await store.revoke(number)
    caplog.clear()
    async with key_store(path):
        assert "metrics-service keys create" in caplog.text, "a revoked key is of no use"
    caplog.clear()
    async with key_store(path, environ={"METRICS_API_KEY_A": PRESHARED}):
        assert "keys create" not in caplog.text


async def test_a_short_key_works_with_a_warning_that_names_the_variable(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with key_store(path, environ={"METRICS_API_KEY_A": "tooshort"}) as store:
        assert (await store.authenticate("tooshort")).service == "a"

    assert "METRICS_API_KEY_A is shorter than 32 characters" in caplog.text
    assert "tooshort" not in caplog.text


async def test_a_command_says_nothing_and_runs_no_task(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with key_store(path, is_service=False, environ={"METRICS_API_KEY_A": "short"}) as store:
        assert store.host.spawned == []  # type: ignore[attr-defined]
    assert [record for record in caplog.records if record.name == "extension.api_keys"] == []


async def test_no_key_is_ever_logged_or_shown(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    weak, admin, unknown = "short-but-secret", "admin-secret", new_key()
    async with key_store(path, environ={"METRICS_API_KEY_A": weak}, admin_key=admin) as store:
        number, key = await make_key(store)
        for secret in (key, weak, admin):
            await store.authenticate(secret)
        shown = await refusal_of(store, unknown) + await refusal_of(store, key[:-1] + "~")
        await store.revoke(number)
        shown += await refusal_of(store, key)
        shown += repr(vars(store)) + repr(store.config) + repr(await store.table.listing())
        query(path, "DROP TABLE api_key_usage_log")
    assert "API key" in caplog.text, "what failed has been logged"
    stored = await anyio.Path(path).read_bytes()
    for secret in (key, weak, admin, unknown):
        assert secret not in caplog.text + shown
        assert secret.encode() not in stored


async def test_a_client_can_ask_what_is_left_of_its_limit(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store, "mcp-gateway", rate_limit=60)
        (route,) = store.routes()
        context = Context()
        context.caller = await store.authenticate(key)
        now = [0.0]
        context.caller.bucket = type(context.caller.bucket)(60, lambda: now[0])
        context.caller.bucket.take(31)
        now[0] += 0.5

        answer = await route.handler(Request({}, b"", context))

        assert (route.method, route.path, route.access, route.cost) == ("GET", "/rate-limit", Access.KEY, 0)
        assert json.loads(json.dumps(answer.body)) == {
            "service": "mcp-gateway",
            "rate_limit": 60,
            "available_tokens": 29,
            "reset_time_seconds": 31,
        }


async def test_stop_is_safe_without_a_start_and_twice(path: Path) -> None:
    async with key_store(path) as store:
        await store.stop()
        await store.stop()
        await ApiKeys("api_keys", store.config, store.host).stop()
