"""Idempotency keys: a request that is repeated is stored once and answered as before."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from pipeline.errors import Conflict
from tests.pipeline.test_journal import batch_of, context_of, opened

pytestmark = pytest.mark.anyio


async def test_a_repeated_key_is_answered_as_before_and_stored_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        batch = batch_of(1.0)
        first = await journal.append(batch, context_of(batch, "key", b"body"))
        again = await journal.append(batch, context_of(batch, "key", b"body"))
        assert not first.repeated
        assert again.repeated
        assert again.request_id == first.request_id
        assert journal.last == 1


async def test_a_key_repeated_within_one_commit_is_stored_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        outcomes = []

        async def push() -> None:
            outcomes.append(await journal.append(batch_of(1.0), context_of(batch_of(1.0), "key", b"body")))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(push)
        assert sorted(outcome.repeated for outcome in outcomes) == [False] + [True] * 9
        assert journal.last == 1


async def test_a_key_survives_a_restart_and_refuses_another_body(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.append(batch_of(1.0), context_of(batch_of(1.0), "key", b"body"))
    async with opened(tmp_path) as journal:
        with pytest.raises(Conflict):
            await journal.append(batch_of(2.0), context_of(batch_of(2.0), "key", b"other"))
