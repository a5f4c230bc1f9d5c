"""Repeats of a push with an `Idempotency-Key`, on both servers: harmless, also across a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.running import KEY, Running, running

pytestmark = pytest.mark.anyio

METRIC = {"type": "auth_request", "value": 1.0}


async def push(service: Running, name: str | bytes, *metrics: dict[str, Any], key: str = KEY) -> httpx.Response:
    """A push with that `Idempotency-Key`."""
    headers: Any = {"Idempotency-Key": name, "X-API-Key": key}
    return await service.client.post("/metrics", json={"service": "test", "metrics": list(metrics)}, headers=headers)


async def test_a_repeat_is_answered_like_the_first_and_stored_once(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        first = await push(service, "a", METRIC, {"type": "no"})
        again = await push(service, "a", METRIC, {"type": "no"})
        assert (first.status_code, again.status_code) == (200, 200)
        assert "Idempotent-Replay" not in first.headers
        assert again.headers["Idempotent-Replay"] == "true"
        assert again.json() == first.json()
        assert again.headers["X-Request-ID"] != first.headers["X-Request-ID"]
        await service.flush()
        assert service.rows() == [(1,)]


async def test_another_body_under_the_same_name_is_409(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        await push(service, "a", METRIC)
        answer = await push(service, "a", METRIC, METRIC)
        assert answer.status_code == 409
        assert answer.json()["status_code"] == 409
        assert "X-RateLimit-Limit" in answer.headers
        await service.flush()
        assert service.rows() == [(1,)]


async def test_a_name_belongs_to_the_key_that_used_it(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        other = await service.make_key()
        assert (await push(service, "a", METRIC)).status_code == 200
        answer = await push(service, "a", METRIC, METRIC, key=other)
        assert (answer.status_code, answer.json()["accepted"]) == (200, 2)
        assert "Idempotent-Replay" not in answer.headers


async def test_repeats_at_the_same_time_are_stored_once(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await push(service, "a", METRIC))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["request_id"] for answer in answers}) == 1
        assert sum("Idempotent-Replay" not in answer.headers for answer in answers) == 1
        await service.flush()
        assert service.rows() == [(1,)]


async def test_a_name_is_remembered_across_a_restart(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        first = await push(service, "a", METRIC)
        await service.flush()
    async with running(tmp_path, server) as service:
        again = await push(service, "a", METRIC)
        assert again.json() == first.json()
        assert again.headers["Idempotent-Replay"] == "true"
        assert (await push(service, "a", METRIC, METRIC)).status_code == 409
        await service.flush()
        assert service.rows() == [(1,)]


async def test_a_repeat_is_answered_with_the_same_warnings(tmp_path: Path, server: str) -> None:
    body = rb'{"service":"s","metrics":[{"type":"custom","value":1,"dimensions":{"tool":"\ud83c"}}]}'
    named = {"Idempotency-Key": "a"}
    async with running(tmp_path, server) as service:
        first = await service.client.post("/metrics", content=body, headers=named)
        warning = "metrics[0].dimensions.tool: invalid characters were replaced by U+FFFD"
        assert (first.status_code, first.json()["warnings"]) == (200, [warning])
        await service.flush()
    async with running(tmp_path, server) as service:
        again = await service.client.post("/metrics", content=body, headers=named)
        assert again.json() == first.json()
        assert again.headers["Idempotent-Replay"] == "true"
        assert (await push(service, "b", METRIC)).json().keys() == first.json().keys() - {"warnings"}


async def test_what_was_refused_does_not_use_up_its_name(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        assert (await push(service, "a", {"type": "no"})).status_code == 422
        answer = await push(service, "a", METRIC)
        assert answer.status_code == 200
        assert "Idempotent-Replay" not in answer.headers


@pytest.mark.parametrize("name", ["", "x" * 129, b"caf\xe9", b"a\tb"])
async def test_a_name_that_is_none_is_400(tmp_path: Path, server: str, name: str | bytes) -> None:
    async with running(tmp_path, server) as service:
        assert (await push(service, name, METRIC)).status_code == 400
        assert (await push(service, "~" * 128, METRIC)).status_code == 200
