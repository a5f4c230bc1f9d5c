"""Who is let in, against the real key store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline import Context, Forbidden, Unauthenticated
from plugins.processors.auth import Auth, AuthConfig
from tests.leaks import secret
from tests.plugins.extensions.api_keys.running import key_store

pytestmark = pytest.mark.anyio

INGEST = "an-ingest-key-of-more-than-32-characters"
ADMIN = secret("the-admin-key-of-more-than-32-characters")


@pytest.fixture
async def auth(tmp_path: Path) -> AsyncIterator[Auth]:
    environ = {"METRICS_API_KEY_MCP_GATEWAY": INGEST}
    async with key_store(tmp_path / "metrics.db", environ=environ, admin_key=ADMIN) as store:
        yield Auth("auth", AuthConfig(), store.host)


async def test_a_good_key_names_the_caller(auth: Auth) -> None:
    context = Context(credential=INGEST)

    await auth.admit(context)

    assert context.caller is not None
    assert context.caller.service == "mcp-gateway"


@pytest.mark.parametrize("credential", [None, ""])
async def test_no_key_is_refused_with_the_header_to_send(auth: Auth, credential: str | None) -> None:
    with pytest.raises(Unauthenticated, match=r"^API key required in X-API-Key header$"):
        await auth.admit(Context(credential=credential))


async def test_a_wrong_key_is_refused_and_names_nobody(auth: Auth) -> None:
    context = Context(credential="wrong")

    with pytest.raises(Unauthenticated, match=r"^Invalid API key$"):
        await auth.admit(context)

    assert context.caller is None


async def test_a_key_without_the_scope_is_refused_with_the_name_of_the_scope(auth: Auth) -> None:
    context = Context(credential=INGEST, scope="admin")

    with pytest.raises(Forbidden, match=r"^API key lacks the scope 'admin'$"):
        await auth.admit(context)

    assert context.caller is not None, "the answer still carries the state of the key's rate limit"


@pytest.mark.parametrize(
    ("credential", "scope"), [(ADMIN, "admin"), (ADMIN, "ingest"), (ADMIN, None), (INGEST, "ingest"), (INGEST, None)]
)
async def test_a_key_with_the_scope_is_let_in_and_any_key_where_none_is_needed(
    auth: Auth, credential: str, scope: str | None
) -> None:
    await auth.admit(Context(credential=credential, scope=scope))
