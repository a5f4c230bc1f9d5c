"""`metrics-service keys`, as a person types it, on a real database."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner, Result

from pipeline import Caller, Host, StartError, Unauthenticated
from pipeline.testing import NopHost
from plugins.extensions.api_keys.commands import keys
from plugins.extensions.api_keys.extension import ApiKeys, ApiKeysConfig
from plugins.extensions.api_keys.keys import digest, has_good_checksum
from tests.leaks import secret
from tests.plugins.extensions.api_keys.running import key_store, query
from tests.plugins.extensions.databases import make_database


class DatabaseInvocation:
    """Stands in for `pipeline.cli.Invocation`: the extensions of a configuration that names one database."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def constructed(self) -> Host:
        host = NopHost(make_database(self.path, is_service=False), is_service=False)
        host.extensions.append(ApiKeys("api_keys", ApiKeysConfig(), host))
        return host

    @asynccontextmanager
    async def extensions(self) -> AsyncIterator[Host]:
        async with key_store(self.path, is_service=False) as store:
            yield store.host


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(keys, arguments, obj=DatabaseInvocation(path))


def key_in(result: Result) -> str:
    """The key in the output of `create`, where it stands alone on its line."""
    assert result.exit_code == 0, result.output
    (key,) = re.findall(r"^ *(mcp_metrics_\S+)$", result.output, re.MULTILINE)
    return secret(str(key))


def test_create_shows_a_key_that_the_service_lets_in_and_the_header_it_goes_into(path: Path) -> None:
    result = run(path, "create", "--service", "mcp-gateway")
    key = key_in(result)

    async def authenticate() -> Caller:
        async with key_store(path) as store:
            return await store.authenticate(key)

    caller = anyio.run(authenticate)
    assert (caller.service, caller.scopes, caller.bucket.limit) == ("mcp-gateway", frozenset({"ingest"}), 1000)
    assert f"X-API-Key: {key}" in result.output
    assert has_good_checksum(key)


def test_create_stores_what_was_asked_for_and_not_the_key(path: Path) -> None:
    result = run(
        path, "create", "--service", "a", "--scope", "admin", "--scope", "ingest", "--scope", "admin",
        "--rate-limit", "7", "--expires", "90d", "--description", "of the build server",
    )  # fmt: skip
    key = key_in(result)

    (row,) = query(path, "SELECT key_hash, scopes, rate_limit, description, is_active, usage_count FROM api_keys")
    assert row == (digest(key), "admin ingest", 7, "of the build server", 1, 0)
    ((expires,),) = query(path, "SELECT expires_at FROM api_keys")
    left = datetime.fromisoformat(expires) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < left <= timedelta(days=90)
    assert query(path, "SELECT event, count, service_name FROM api_key_usage_log") == [("created", 1, "a")]
    assert key.encode() not in path.read_bytes()
    assert "a: admin ingest, 7 requests a minute, expires 2" in result.output


def test_every_create_makes_another_key(path: Path) -> None:
    assert key_in(run(path, "create", "--service", "a")) != key_in(run(path, "create", "--service", "a"))
    assert query(path, "SELECT count(*) FROM api_keys") == [(2,)]


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--service", ""],
        ["--service", "a b"],
        ["--service", "a\n"],
        ["--service", "a" * 101],
        ["--service", "a", "--scope", "root"],
        ["--service", "a", "--rate-limit", "0"],
        ["--service", "a", "--rate-limit", "many"],
        ["--service", "a", "--expires", "soon"],
        ["--service", "a", "--expires", "0"],
        ["--service", "a", "--expires", "99999999999d"],
        ["--service", "a", "--description", "two\nlines"],
        ["--service", "a", "--description", "\udcff"],
        ["--service", "a", "--description", "x" * 201],
    ],
)
def test_a_mistake_is_explained_and_makes_no_key(path: Path, wrong: list[str]) -> None:
    result = run(path, "create", *wrong)

    assert result.exit_code == 2
    assert "Error: " in result.output
    assert not path.exists()


def test_list_shows_every_key_without_a_secret(path: Path) -> None:
    first = key_in(run(path, "create", "--service", "auth-server", "--description", "first"))
    second = key_in(run(path, "create", "--service", "b", "--rate-limit", "5", "--expires", "1h"))
    run(path, "revoke", "2")

    output = run(path, "list").output

    database, heads, *rows = output.splitlines()
    assert database == f"database: {path}"
    assert heads.split()[:3] == ["ID", "KEY", "SERVICE"]
    public = [id for (id,) in query(path, "SELECT public_id FROM api_keys ORDER BY id")]
    cells = [re.split(r"\s{2,}", row) for row in rows]
    assert cells[0] == [
        "1", public[0], "auth-server", "ingest", "default", "yes", "never", "never", "0", "first",
    ]  # fmt: skip
    assert cells[1][:6] == ["2", public[1], "b", "ingest", "5", "no"]
    assert first not in output
    assert digest(first)[:8] not in output
    assert digest(second)[:8] not in output


def test_list_without_keys_shows_the_heads_alone(path: Path) -> None:
    async def start() -> None:
        async with key_store(path):
            pass

    anyio.run(start)
    database, heads = run(path, "list").output.splitlines()
    assert database == f"database: {path}"
    assert heads.startswith("ID ")


def test_create_says_in_which_database(path: Path) -> None:
    assert run(path, "create", "--service", "a").output.startswith(f"database: {path}\n")


@pytest.mark.parametrize("words", [["list"], ["revoke", "1"]])
def test_a_look_for_keys_makes_no_database(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "folder" / "metrics.db"

    result = run(path, *words)

    assert isinstance(result.exception, StartError)
    assert (str(result.exception), result.exception.exit_code) == (f"there is no database {path} yet", 2)
    assert list(tmp_path.iterdir()) == []


def test_revoke_ends_a_key_and_may_be_said_twice(path: Path) -> None:
    key_in(run(path, "create", "--service", "a"))

    assert run(path, "revoke", "1").output == f"database: {path}\nAPI key 1 is revoked.\n"
    assert run(path, "revoke", "1").exit_code == 0

    assert query(path, "SELECT is_active FROM api_keys") == [(0,)]


async def authenticated(path: Path, *credentials: str, later: float = 0) -> list[Caller | str]:
    """Who the service says that these are, so many seconds from now."""
    found: list[Caller | str] = []
    async with key_store(path) as store:
        store.wall_clock = lambda: time.time() + later
        for each in credentials:
            try:
                found.append(await store.authenticate(each))
            except Unauthenticated as refusal:
                found.append(str(refusal))
    return found


def test_rotate_makes_a_key_that_may_do_the_same_and_both_are_good_for_a_while(path: Path) -> None:
    options = ["--scope", "admin", "--scope", "ingest", "--rate-limit", "7", "--description", "of the build server"]
    old = key_in(run(path, "create", "--service", "mcp-gateway", *options))
    result = run(path, "rotate", "1", "--overlap", "2h")
    new = key_in(result)

    assert old not in result.output
    assert has_good_checksum(new)
    assert "API key 2 " in result.output
    assert "of the service mcp-gateway: admin ingest, 7 requests a minute, never expires" in result.output
    ((expires,),) = query(path, "SELECT expires_at FROM api_keys WHERE id = 1")
    (before, after) = (id for (id,) in query(path, "SELECT public_id FROM api_keys ORDER BY id"))
    assert before != after
    assert f"API key 2 ({after}) of the service" in result.output
    assert f"The old key 1 ({before}) is good until {expires}." in result.output
    left = datetime.fromisoformat(expires) - datetime.now(UTC)
    assert timedelta(minutes=119) < left <= timedelta(hours=2)
    what = "service_name, scopes, rate_limit, description, is_active"
    (one, other) = query(path, f"SELECT {what} FROM api_keys")
    assert one == other == ("mcp-gateway", "admin ingest", 7, "of the build server", 1)
    assert query(path, "SELECT api_key_id, event FROM api_key_usage_log") == [(1, "created"), (2, "created")]
    for caller in anyio.run(authenticated, path, old, new):
        assert isinstance(caller, Caller)
        assert (caller.service, caller.scopes) == ("mcp-gateway", frozenset({"admin", "ingest"}))
    after, still = anyio.run(partial(authenticated, later=7201), path, old, new)
    assert after == "API key is inactive"
    assert isinstance(still, Caller)


def test_rotate_never_prolongs_a_key_and_the_new_one_may_expire(path: Path) -> None:
    key_in(run(path, "create", "--service", "a", "--expires", "1h"))
    ((before,),) = query(path, "SELECT expires_at FROM api_keys")

    key_in(run(path, "rotate", "1", "--expires", "90d"))

    ((after,), (new,)) = query(path, "SELECT expires_at FROM api_keys")
    assert after == before
    assert timedelta(days=89) < datetime.fromisoformat(new) - datetime.now(UTC) <= timedelta(days=90)


def test_without_an_overlap_the_old_key_ends_at_once(path: Path) -> None:
    old = key_in(run(path, "create", "--service", "a"))
    new = key_in(run(path, "rotate", "1", "--overlap", "0"))

    assert run(path, "rotate", "1").exit_code == 2, "it is good no more"
    refusal, caller = anyio.run(authenticated, path, old, new)
    assert refusal == "API key is inactive"
    assert isinstance(caller, Caller)


@pytest.mark.parametrize(
    "wrong",
    [["7"], ["abc"], ["1"], ["2", "--overlap", "soon"], ["2", "--overlap", "-1h"], ["2", "--overlap", "9999999999d"],
     ["2", "--overlap", "9999999d"], ["2", "--expires", "never"]],
)  # fmt: skip
def test_a_mistake_in_rotating_changes_nothing(path: Path, wrong: list[str]) -> None:
    for _ in range(2):
        key_in(run(path, "create", "--service", "a"))
    run(path, "revoke", "1")
    before = query(path, "SELECT * FROM api_keys")

    result = run(path, "rotate", *wrong)

    assert result.exit_code == 2, result.output
    assert query(path, "SELECT * FROM api_keys") == before


@pytest.mark.parametrize("id", ["7", "0", "abc", "-1", "99999999999999999999"])
def test_revoking_what_is_not_there_is_a_mistake(path: Path, id: str) -> None:
    key_in(run(path, "create", "--service", "a"))

    result = run(path, "revoke", id)

    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)


def test_revoking_what_is_no_id_is_said_plainly(path: Path) -> None:
    assert "'abc' is no key's id (must be a number that `metrics-service keys list` shows)" in run(
        path, "revoke", "abc"
    ).output.replace("\n", " ")


def test_a_configuration_without_keys_is_a_mistake() -> None:
    class Nothing:
        def constructed(self) -> Host:
            return NopHost(is_service=False)

    result = CliRunner().invoke(keys, ["list"], obj=Nothing())

    assert isinstance(result.exception, StartError)
    assert result.exception.exit_code == 2
    assert str(result.exception) == "the configuration has no extension of the type 'api_keys'"
