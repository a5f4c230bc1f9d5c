"""The requests and their durations in a scrape, on both servers. A client can make up paths and methods, but no labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Distribution
from plugins.receivers.http.traffic import UNMATCHED, Traffic
from tests.plugins.receivers.wire import connected, request
from tests.running import ADMIN_KEY, Running, running
from tests.scrapes import samples, total

pytestmark = pytest.mark.anyio

METRIC = {"type": "auth_request", "value": 1.0}
ADMIN = {"X-API-Key": ADMIN_KEY}


async def requests(service: Running) -> dict[tuple[str, str, str], float]:
    """How many there were, by method, endpoint and status; as many have a duration."""
    text = await service.scrape()
    found = {
        (dict(labels)["method"], dict(labels)["endpoint"], dict(labels)["status"]): value
        for (_, labels), value in samples(text, prefix="http_requests_total").items()
    }
    for method, endpoint in {key[:2] for key in found}:
        durations = total(text, "http_request_duration_seconds_count", method=method, endpoint=endpoint)
        assert durations == sum(value for key, value in found.items() if key[:2] == (method, endpoint))
    return found


async def test_pushes_are_counted_by_their_status(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, "receivers.http.max_request_size=100KB") as service:
        await service.push(METRIC)
        await service.push(METRIC, METRIC)
        await service.push({})
        await service.client.post("/metrics", content=b"{")
        await service.client.post("/metrics", content=b"x" * 100_001)
        await service.client.post("/metrics", headers={"X-API-Key": "wrong"})
        assert await requests(service) == {
            ("POST", "/metrics", status): count
            for status, count in {"200": 2, "422": 1, "400": 1, "413": 1, "401": 1}.items()
        }


async def test_pages_are_counted_by_the_route_that_they_matched(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        await service.client.get("/health")
        await service.client.get("/health?a=b")
        await service.client.get("/rate-limit", headers={"X-API-Key": "wrong"})
        for table in ("metrics", "auth_metrics", "of_nobody"):
            await service.client.put(f"/admin/retention/policies/{table}", headers=ADMIN, content=b"no JSON")
        found = await requests(service)
    templated = {key: value for key, value in found.items() if key[1].startswith("/admin")}
    assert found == {("GET", "/health", "200"): 2, ("GET", "/rate-limit", "401"): 1, **templated}
    assert {endpoint for _, endpoint, _ in templated} == {"/admin/retention/policies/{table}"}
    assert sum(templated.values()) == 3


async def test_whatever_no_route_has_is_one_endpoint(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        for path in ("/a", "/b", "/metrics/", "/health/of/nobody", "//health", "/{x}", "/" + "x" * 1000):
            assert (await service.client.get(str(service.client.base_url).rstrip("/") + path)).status_code == 404
        assert (await service.client.put("/metrics")).status_code == 405
        assert (await service.client.delete("/health")).status_code == 405
        assert await requests(service) == {
            ("GET", UNMATCHED, "404"): 7,
            ("PUT", UNMATCHED, "405"): 1,
            ("DELETE", UNMATCHED, "405"): 1,
        }


async def test_methods_that_no_route_has_are_one(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        for method in ("PROPFIND", "MKCOL", "TRACE", "SEARCH"):
            assert (await service.client.request(method, "/health")).status_code == 405
        assert await requests(service) == {("_OTHER", UNMATCHED, "405"): 4}


async def test_a_method_that_a_server_lets_through_adds_no_label(tmp_path: Path) -> None:
    async with running(tmp_path, "receivers.http.server=hypercorn") as service:
        for number in range(5):
            await service.client.request(f"BREW{number}", "/pot")
        assert await requests(service) == {("_OTHER", UNMATCHED, "404"): 5}


async def test_a_duration_is_at_least_what_the_body_took_to_arrive(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, "receivers.http.body_timeout=0.3") as service:
        async with connected(service.port) as wire:
            await wire.send(request("POST /metrics HTTP/1.1", "Content-Length: 100", body=b"{"))
            assert (await wire.answer()).status == 408
        text = await service.scrape()
    assert total(text, "http_requests_total", method="POST", endpoint="/metrics", status="408") == 1
    assert 0.3 <= total(text, "http_request_duration_seconds_sum", method="POST", endpoint="/metrics") < 10
    assert total(text, "http_request_duration_seconds_bucket", le="0.25", endpoint="/metrics") == 0
    assert total(text, "http_request_duration_seconds_bucket", le="+Inf", endpoint="/metrics") == 1


@given(st.lists(st.text()))
async def test_no_method_adds_a_label_of_its_own(methods: list[str]) -> None:
    traffic = Traffic()
    for method in [*methods, "GET"]:
        traffic.count(method, "/health", 200, 0.001)
    counted, durations = (list(each.read()) for each in traffic.instruments())
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "_OTHER"}
    assert {labels["method"] for labels, _ in counted} <= known
    assert sum(value for _, value in counted if isinstance(value, int)) == len(methods) + 1
    assert sum(sum(value.counts) for _, value in durations if isinstance(value, Distribution)) == len(methods) + 1
