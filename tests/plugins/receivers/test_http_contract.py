"""The HTTP contract, on both servers: who may call, how often, the form of every answer, and what existing clients send."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from plugins.extensions.api_keys.extension import ApiKeys
from plugins.extensions.api_keys.keys import new_key
from tests.running import ADMIN_KEY, KEY, Running, running

pytestmark = pytest.mark.anyio

METRIC = {"type": "auth_request", "value": 1.0}
PUSH = {"service": "test", "metrics": [METRIC]}

ADMIN_CALLS = [
    ("GET", "/admin/retention/preview"),
    ("POST", "/admin/retention/cleanup"),
    ("GET", "/admin/retention/policies"),
    ("PUT", "/admin/retention/policies/metrics?retention_days=30"),
    ("GET", "/admin/database/stats"),
    ("GET", "/admin/database/size"),
]


@pytest.mark.parametrize(
    "headers",
    [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer  {KEY}"}],
    ids=["X-API-Key", "Bearer", "scheme in lower case"],
)
async def test_a_key_travels_in_either_header(tmp_path: Path, server: str, headers: dict[str, str]) -> None:
    async with running(tmp_path, server) as service:
        del service.client.headers["X-API-Key"]
        assert (await service.client.post("/metrics", json=PUSH, headers=headers)).status_code == 200
        assert (await service.client.post("/flush", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/metrics"), ("POST", "/flush"), ("GET", "/rate-limit"), *ADMIN_CALLS]
)
async def test_whoever_has_no_good_key_is_told_why(tmp_path: Path, server: str, method: str, path: str) -> None:
    async with running(tmp_path, server) as service:
        del service.client.headers["X-API-Key"]
        expired = await service.make_key("ingest", "admin", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        required, invalid = "API key required in X-API-Key header", "Invalid API key"
        for headers, detail in [
            ({}, required),
            ({"X-API-Key": ""}, required),
            ({"Authorization": "Basic abc"}, required),
            ({"Authorization": "Bearer"}, required),
            ({"X-API-Key": "nobody's"}, invalid),
            ({"X-API-Key": new_key()}, invalid),
            ({"Authorization": f"Bearer {new_key()}"}, invalid),
            ({"X-API-Key": expired}, "API key is inactive"),
        ]:
            answer = await service.client.request(method, path, json=PUSH, headers=headers)
            assert answer.status_code == 401, headers
            assert answer.json() == {
                "detail": detail,
                "status_code": 401,
                "request_id": answer.headers["X-Request-ID"],
            }
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "X-RateLimit-Limit" not in answer.headers


async def test_a_revoked_key_is_inactive_at_once(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        key = {"X-API-Key": await service.make_key()}
        assert (await service.client.post("/metrics", json=PUSH, headers=key)).status_code == 200
        assert await service.service.extension(ApiKeys).revoke(1)
        answer = await service.client.post("/metrics", json=PUSH, headers=key)
        assert (answer.status_code, answer.json()["detail"]) == (401, "API key is inactive")


async def test_a_key_without_the_scope_is_told_which_is_missing(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        only_admin = {"X-API-Key": await service.make_key("admin")}
        answer = await service.client.post("/metrics", json=PUSH, headers=only_admin)
        assert (answer.status_code, answer.json()["detail"]) == (403, "API key lacks the scope 'ingest'")
        assert "X-RateLimit-Limit" in answer.headers
        for method, path in ADMIN_CALLS:
            answer = await service.client.request(method, path)
            assert (answer.status_code, answer.json()["detail"]) == (403, "API key lacks the scope 'admin'"), path
            assert "X-RateLimit-Remaining" in answer.headers
            allowed = await service.client.request(method, path, headers={"X-API-Key": ADMIN_KEY})
            assert allowed.status_code == 200, path
        # Any key will do for what is one's own.
        assert (await service.client.post("/flush", headers=only_admin)).status_code == 200
        assert (await service.client.get("/rate-limit", headers=only_admin)).status_code == 200


async def test_every_answer_to_somebody_known_carries_the_state_of_the_limit(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, METRICS_RATE_LIMIT="100") as service:
        calls = [
            await service.push(METRIC),
            await service.push({"type": "unknown"}),
            await service.client.post("/metrics", content=b"{"),
            await service.client.post("/metrics", json=PUSH, headers={"Content-Type": "text/plain"}),
            await service.client.post("/metrics", content=b" " * 10_000_001),
            await service.client.post("/flush"),
            await service.client.post("/flush", content=b" " * 10_000_001),
        ]
        assert [answer.status_code for answer in calls] == [200, 422, 400, 415, 413, 200, 413]
        for taken, answer in enumerate(calls, start=1):
            assert answer.headers["X-RateLimit-Limit"] == "100"
            # One token comes back every 0.6 s.
            assert 100 - taken <= int(answer.headers["X-RateLimit-Remaining"]) <= 100 - taken + 5


@pytest.mark.parametrize(("limit", "retry_after"), [(2, 30), (6, 10), (45, 2)])
async def test_over_the_limit_a_client_is_told_when_to_come_back(
    tmp_path: Path, server: str, limit: int, retry_after: int
) -> None:
    async with running(tmp_path, server, METRICS_RATE_LIMIT=str(limit)) as service:
        service.client.timeout = 30
        began = time.monotonic()
        for _ in range(limit):
            assert (await service.push(METRIC)).status_code == 200
        answer = await service.push(METRIC)
        assert time.monotonic() - began < 60 / limit, (
            "a token has come back meanwhile: this machine is too slow for the test"
        )
        assert answer.status_code == 429
        assert answer.json()["detail"] == f"Rate limit exceeded. Limit: {limit} requests/minute"
        assert answer.headers["X-RateLimit-Remaining"] == "0"
        said = int(answer.headers["Retry-After"])
        assert retry_after - math.ceil(time.monotonic() - began) <= said <= retry_after


async def test_what_retry_after_says_is_true(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, METRICS_RATE_LIMIT="60") as service:
        while (answer := await service.push(METRIC)).status_code == 200:
            pass
        await anyio.sleep(int(answer.headers["Retry-After"]))
        assert (await service.push(METRIC)).status_code == 200


async def test_rate_limit_takes_no_token_and_says_what_is_left(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, METRICS_RATE_LIMIT="3") as service:
        assert (await service.client.get("/rate-limit")).json() == {
            "service": "test",
            "rate_limit": 3,
            "available_tokens": 3,
            "reset_time_seconds": 0,
        }
        for _ in range(3):
            assert (await service.push(METRIC)).status_code == 200
        for _ in range(5):
            answer = await service.client.get("/rate-limit")
            assert answer.status_code == 200
            assert answer.json()["available_tokens"] == 0
            assert 55 <= answer.json()["reset_time_seconds"] <= 60
        own = await service.make_key(service="other", rate_limit=7)
        answer = await service.client.get("/rate-limit", headers={"X-API-Key": own})
        assert (answer.json()["service"], answer.json()["rate_limit"]) == ("other", 7)


async def every_kind_of_answer(service: Running, headers: dict[str, str]) -> list[tuple[int, str, str | None]]:
    """Status, request id in the header and request id in the body, for each way in which an answer comes about."""
    found = []
    for method, path, content in [
        ("POST", "/metrics", b'{"service": "test", "metrics": [{"type": "custom", "value": 1}]}'),
        ("POST", "/metrics", b'{"service": "test", "metrics": [{"type": "custom", "value": "x"}]}'),
        ("POST", "/metrics", b"["),
        ("GET", "/health", b""),
        ("POST", "/flush", b""),
        ("GET", "/admin/database/size", b""),
        ("GET", "/nothing", b""),
        ("DELETE", "/metrics", b""),
        ("OPTIONS", "/metrics", b""),
    ]:
        answer = await service.client.request(method, path, content=content, headers=headers)
        body = answer.json()
        found.append((answer.status_code, answer.headers["X-Request-ID"], body.get("request_id")))
    return found


@pytest.mark.parametrize("own", ["abc", "!~ 1", "x" * 100])
async def test_every_answer_carries_the_clients_own_request_id(tmp_path: Path, server: str, own: str) -> None:
    async with running(tmp_path, server) as service:
        answers = await every_kind_of_answer(service, {"X-Request-ID": own})
        assert [status for status, *_ in answers] == [200, 422, 400, 200, 200, 403, 404, 405, 405]
        assert {in_header for _, in_header, _ in answers} == {own}
        assert {in_body for *_, in_body in answers} == {own, None}


@pytest.mark.parametrize("own", [None, b"", b"x" * 101, b"caf\xe9", b"tab\tbed"])
async def test_every_answer_carries_a_request_id_of_ours_otherwise(
    tmp_path: Path, server: str, own: bytes | None
) -> None:
    async with running(tmp_path, server) as service:
        headers = {} if own is None else {"X-Request-ID": own}
        answers = await every_kind_of_answer(service, headers)  # type: ignore[arg-type]
        ids = [in_header for _, in_header, _ in answers]
        assert len(set(ids)) == len(ids)
        for _, in_header, in_body in answers:
            assert in_header.startswith("req_")
            assert len(in_header) == 20
            assert in_body in (in_header, None)


async def test_what_is_not_there_is_an_error_in_the_usual_form(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        for method, path, status, detail, allow in [
            ("GET", "/nothing", 404, "Not Found", None),
            ("POST", "/metrics/", 404, "Not Found", None),
            ("GET", "/health//live", 404, "Not Found", None),
            ("GET", "/admin/retention/policies/a/b", 404, "Not Found", None),
            ("GET", "/metrics", 405, "Method Not Allowed", {"POST"}),
            ("POST", "/health", 405, "Method Not Allowed", {"GET", "HEAD"}),
        ]:
            answer = await service.client.request(method, path)
            assert answer.status_code == status, path
            assert answer.headers["Content-Type"] == "application/json"
            assert answer.json() == {
                "detail": detail,
                "status_code": status,
                "request_id": answer.headers["X-Request-ID"],
            }
            if allow:
                assert set(answer.headers["Allow"].split(", ")) == allow


async def test_existing_clients_are_served_unchanged(tmp_path: Path, server: str) -> None:
    """One metric a request, a timestamp without a zone, null for what they don't have; nothing but 200 is success to them."""
    async with running(tmp_path, server) as service, httpx.AsyncClient(timeout=5.0) as client:
        payload: dict[str, Any] = {
            "service": "auth-server",
            "version": "1.0.0",
            "instance_id": None,
            "metrics": [
                {
                    "type": "auth_request",
                    "timestamp": "2024-05-06T07:08:09.250000",
                    "value": 1.0,
                    "duration_ms": None,
                    "dimensions": {"success": True, "method": "jwt", "server": "currenttime", "user_hash": ""},
                    "metadata": {"error_code": None},
                }
            ],
        }
        url = f"http://127.0.0.1:{service.port}/metrics"
        answer = await client.post(url, json=payload, headers={"X-API-Key": KEY, "Content-Type": "application/json"})
        assert answer.status_code == 200
        await service.flush()
        columns = (
            "service, service_version, instance_id, timestamp, value, duration_ms, dimensions, metadata, key_service"
        )
        ((*row, dimensions, metadata, key_service),) = service.rows(f"SELECT {columns} FROM metrics")
        assert row == ["auth-server", "1.0.0", None, "2024-05-06T07:08:09.250000Z", 1.0, None]
        assert (json.loads(dimensions), json.loads(metadata)) == (
            payload["metrics"][0]["dimensions"],
            {"error_code": None},
        )
        assert key_service == "test"
