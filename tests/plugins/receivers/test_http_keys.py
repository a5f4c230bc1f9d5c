"""A request says once whose it is, on both servers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.plugins.receivers.wire import exchange, push, request
from tests.running import KEY, running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("X-API-Key", ("nobody's", KEY)),
        ("x-api-key", (KEY, "nobody's")),
        ("X-API-Key", (KEY, KEY)),
        ("Authorization", ("Basic eDp5", f"Bearer {KEY}")),
    ],
)
async def test_two_keys_are_refused_whichever_is_good(
    tmp_path: Path, server: str, name: str, values: tuple[str, str]
) -> None:
    lines = [f"{name}: {value}" for value in values]
    async with running(tmp_path, server) as service:
        answers = [
            await exchange(service.port, data)
            for data in (push(*lines, key=None), request("GET /rate-limit HTTP/1.1", *lines, key=None))
        ]
        await service.flush()
        assert service.rows() == [(0,)]
    for answer in answers:
        assert answer.status == 400
        assert msgspec.json.decode(answer.body)["detail"].lower() == f"{name} must not be there twice".lower()


async def test_other_headers_may_be_repeated_and_both_ways_of_a_key_may_be_there(tmp_path: Path, server: str) -> None:
    lines = [
        f"X-API-Key: {KEY}",
        "Authorization: Bearer nobody's",
        "Accept: a/b",
        "Accept: c/d",
        "X-Any: 1",
        "X-Any: 2",
    ]
    async with running(tmp_path, server) as service:
        assert (await exchange(service.port, push(*lines, key=None))).status == 200
        assert (await exchange(service.port, request("GET /rate-limit HTTP/1.1", *lines, key=None))).status == 200
