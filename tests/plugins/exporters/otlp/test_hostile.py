"""A collector, or a proxy in front of it, that repeats what we sent: no secret of ours reaches a log, a page or a dead letter."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from pipeline.logs import JsonFormatter
from tests.collector import Collector, grpc_collector, http_collector
from tests.leaks import secret
from tests.plugins.exporters.otlp.forwarding import listening, read_request
from tests.running import ADMIN_KEY, KEY, Running, running, until

pytestmark = pytest.mark.anyio

TOKEN = secret('our"token/with+odd%characters-0123')
PASSWORD = secret("the-password-of-the-proxy")
HEADERS = "Authorization=Bearer%20our%22token%2Fwith%2Bodd%25characters-0123"
EVENT = {"type": "auth_request", "value": 1}


def forms() -> list[str]:
    """What must not be shown, nor the beginning of it."""
    encoded = base64.b64encode(TOKEN.encode()).decode()
    return [TOKEN[:12], TOKEN[10:], json.dumps(TOKEN)[1:-1], encoded[:12], "our%22token", PASSWORD]


def repeated(headers: Mapping[str, str]) -> str:
    """The headers, in several forms, with so much before them that a cut goes through one of them."""
    own = headers.get("Authorization") or headers.get("authorization", "")
    token = own.removeprefix("Bearer ")
    parts = [own, json.dumps(dict(headers)), base64.b64encode(token.encode()).decode(), own.replace('"', "%22")]
    return " | ".join(parts) + " " + "x" * (505 - len(" | ".join(parts)) % 400) + " " + token


def http_says(status: int, collector: Collector) -> Callable[..., Any]:
    def answer(request: object) -> web.Response:
        text = repeated(collector.headers[-1])
        location = {"Location": f"http://127.0.0.1/?t={TOKEN}"} if 300 <= status < 400 else {}
        return web.Response(status=status, text=text, reason=f"No {TOKEN}", headers=location)

    return answer


async def shown(service: Running, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """All that the service shows, with a key and without one, its log and its dead letters."""
    found = [JsonFormatter().format(each) for each in caplog.records]
    for key in ({}, {"X-API-Key": KEY}, {"X-API-Key": ADMIN_KEY}):
        service.client.headers.pop("X-API-Key", None)
        pages = [await service.client.get(page, headers=key) for page in ("/", "/health", "/health/ready")]
        found += [page.text for page in pages]
    service.client.headers["X-API-Key"] = KEY
    found.append((await service.client.post("/flush")).text)
    found.append(await service.scrape())
    for path in (folder / "metrics-journal" / "events.db", folder / "metrics-journal" / "metrics.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            found += [str(row) for row in connection.execute("SELECT exporter, reason FROM dead_letters")]
    return "\n".join(found)


def not_shown(text: str) -> None:
    for form in forms():
        assert form not in text


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 429, 500, 503])
async def test_what_an_http_collector_repeats_is_masked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with http_collector() as collector:
        collector.answer_http = http_says(status, collector)
        variables = {"OTEL_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": HEADERS}
        async with running(tmp_path, **variables) as service:
            await service.push(EVENT)
            await collector.until(lambda: collector.requests > 0)
            await until(lambda: any("otlp" in each.name for each in caplog.records))
            text = await shown(service, tmp_path, caplog)
            assert "***" in text
            not_shown(text)
            public = service.service.health().components["exporter/otlp"]
            assert public == "ok" or public.startswith("cannot deliver since 2")
            assert str(status) not in public.partition("since")[0]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE]
)
async def test_what_a_grpc_collector_repeats_is_masked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: grpc.StatusCode
) -> None:
    async with grpc_collector() as collector:
        collector.answer_grpc = lambda request: (code, repeated(collector.headers[-1]))
        variables = {"OTEL_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": HEADERS}
        async with running(tmp_path, "exporters.otlp.protocol=grpc", **variables) as service:
            await service.push(EVENT)
            await until(lambda: any("otlp" in each.name for each in caplog.records))
            text = await shown(service, tmp_path, caplog)
            assert "***" in text
            not_shown(text)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_what_a_partial_success_repeats_is_masked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    async with http_collector() if protocol == "http" else grpc_collector() as collector:
        collector.response.partial_success.rejected_data_points = 1
        collector.response.partial_success.error_message = repeated({"authorization": f"Bearer {TOKEN}"})
        overrides = ["exporters.otlp.protocol=grpc"] if protocol == "grpc" else []
        variables = {"OTEL_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": HEADERS}
        async with running(tmp_path, *overrides, **variables) as service:
            await service.push(EVENT)
            await until(lambda: any("rejected points" in each.getMessage() for each in caplog.records))
            not_shown(await shown(service, tmp_path, caplog))


async def test_the_error_page_of_a_proxy_is_masked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(reader: Any, writer: Any) -> None:
        _, headers, _ = await read_request(reader)
        basic = headers.get("proxy-authorization", "")
        page = f"<p>{basic} {base64.b64decode(basic.removeprefix('Basic ')).decode()} {headers['authorization']}</p>"
        head = f"HTTP/1.1 407 Not with {PASSWORD}\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        writer.write((head + page).encode())
        await writer.drain()

    async with listening(refuse) as port:
        variables = {
            "OTEL_OTLP_ENDPOINT": "http://collector.invalid:4318",
            "OTEL_EXPORTER_OTLP_HEADERS": HEADERS,
            "http_proxy": f"http://user:{PASSWORD}@{port.address}",
        }
        async with running(tmp_path, **variables) as service:
            await service.push(EVENT)
            await until(lambda: any("otlp" in each.name for each in caplog.records))
            text = await shown(service, tmp_path, caplog)
            assert "HTTP 407" in text
            not_shown(text)
            assert base64.b64encode(f"user:{PASSWORD}".encode()).decode() not in text


async def test_a_service_that_masks_nothing_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.masking.Masker.keep", lambda *given, **named: None)
    async with http_collector() as collector:
        collector.answer_http = lambda request: web.Response(
            status=401, text=f"you sent {collector.headers[-1]['Authorization']}"
        )
        # Not one of the marked secrets: the search in the log of all tests would find it, too.
        variables = {"OTEL_OTLP_ENDPOINT": collector.url}
        async with running(
            tmp_path, "exporters.otlp.headers.Authorization=Bearer shown-on-purpose", **variables
        ) as service:
            await service.push(EVENT)
            await until(lambda: any("otlp" in each.name for each in caplog.records))
            assert "shown-on-purpose" in await shown(service, tmp_path, caplog)
