"""Each kind of change has its effect while the service runs, and each that cannot be made leaves everything as it was."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from pipeline.testing import doubles
from pipeline.testing.doubles import RecordingExporter
from plugins.extensions.api_keys.keys import new_key
from tests.collector import http_collector
from tests.leaks import secret
from tests.plugins.exporters.otlp.certificates import Authority
from tests.reloading import EVENTS, component, reload
from tests.running import ADMIN_KEY, KEY, running, until
from tests.scrapes import samples, total

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
METRIC = {"type": "auth_request", "value": 1.0, "duration_ms": 12.0, "dimensions": {"method": "jwt"}}


async def test_nothing_changed_keeps_every_component(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        before = list(service.service.graph.components())
        assert await reload(service)
        assert list(service.service.graph.components()) == before
        assert (await service.push(METRIC)).status_code == 200


async def test_a_rate_limit_changes_and_what_was_used_stays_used(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_RATE_LIMIT="100") as service:
        own = {"X-API-Key": await service.make_key(rate_limit=7)}
        for _ in range(40):
            await service.push(METRIC)
        await service.client.get("/rate-limit", headers=own)
        assert await reload(service, METRICS_RATE_LIMIT="50")
        answer = (await service.client.get("/rate-limit")).json()
        assert answer["rate_limit"] == 50
        assert 10 <= answer["available_tokens"] < 20
        assert (await service.client.get("/rate-limit", headers=own)).json()["rate_limit"] == 7


async def test_a_processor_does_what_its_new_options_say(tmp_path: Path) -> None:
    with_filter = f"{EVENTS}.processors=[auth, rate_limit, validate, filter, batch]"

    def dropping(type_: str) -> str:
        return f"processors.filter={{drop: [{{types: [{type_}]}}]}}"

    async with running(tmp_path, dropping("auth_request"), with_filter) as service:
        await service.push(METRIC)
        assert await reload(service, dropping("custom"), with_filter)
        await service.push(METRIC, {"type": "custom", "value": 1})
        await service.flush()
        assert service.rows("SELECT metric_type FROM metrics") == [("auth_request",)]
        assert total(await service.scrape(), "processor_filtered_items_total", processor="filter") == 2


async def test_a_processor_is_added_to_a_pipeline(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        drop = "processors.filter={drop: [{types: [auth_request]}]}"
        assert await reload(service, drop, f"{EVENTS}.processors=[auth, rate_limit, validate, filter, batch]")
        await service.push(METRIC)
        await service.flush()
        assert service.rows() == [(0,)]


async def test_retention_days_and_a_route_that_an_extension_no_longer_offers(tmp_path: Path) -> None:
    admin = {"X-API-Key": ADMIN_KEY}
    async with running(tmp_path) as service:
        assert await reload(service, METRICS_RETENTION_DAYS="7")
        policies = (await service.client.get("/admin/retention/policies", headers=admin)).json()
        assert policies["metrics"]["retention_days"] == 7
        assert await reload(service, "service.extensions=[database, api_keys]")
        assert (await service.client.get("/admin/retention/policies", headers=admin)).status_code == 404


async def test_the_journal_is_held_to_other_limits(tmp_path: Path) -> None:
    async with running(tmp_path, FLUSH_INTERVAL_SECONDS="3600", BATCH_SIZE="1000") as service:
        await service.push(METRIC)
        assert await reload(service, FLUSH_INTERVAL_SECONDS="3600", BATCH_SIZE="2")
        await service.push(METRIC)
        await until(lambda: service.rows() == [(2,)])


async def test_who_may_scrape_changes(tmp_path: Path) -> None:
    key = secret("a-key-for-prometheus-that-is-long-enough")
    async with running(tmp_path) as service:
        assert await reload(service, f"exporters.prometheus.key={key}")
        assert (await service.client.get(service.scraped, headers={"X-API-Key": ""})).status_code == 401
        await service.scrape(**{"X-API-Key": key})


async def test_an_exporter_is_added_replaced_and_removed(tmp_path: Path) -> None:
    def with_one(options: str) -> tuple[str, str]:
        return f"exporters.failing={options}", f"{EVENTS}.exporters=[sqlite, series, failing]"

    async with running(tmp_path, plugins=[doubles]) as service:
        await service.push(METRIC)
        assert await reload(service, *with_one("{times: 1000}"))
        await service.push(METRIC)
        failing = component(service, "failing")
        await until(lambda: failing.failures > 0)
        assert await reload(service, *with_one("{times: 0}"))
        replaced = component(service, "failing")
        assert isinstance(replaced, RecordingExporter)
        await service.push(METRIC)
        await service.flush()
        assert [len(batch) for batch in replaced.batches] == [1, 1]
        assert total(await service.scrape(), "otelcol_exporter_sent_items_total", exporter="failing") == 2
        assert await reload(service)
        await service.push(METRIC)
        await service.flush()
        assert len(replaced.batches) == 2
        assert service.rows() == [(4,)]


async def test_what_a_collector_could_not_take_goes_to_the_next(tmp_path: Path) -> None:
    """With the pipelines and connectors that there are only with a collector; its counters go on."""
    async with running(tmp_path, FLUSH_INTERVAL_SECONDS="0.1") as service, http_collector() as collector:
        assert len(service.service.graph.pipelines) == 2
        assert await reload(service, OTEL_OTLP_ENDPOINT=collector.url)
        assert len(service.service.graph.pipelines) == 3
        await service.push(METRIC)
        await until(lambda: "mcp_auth_requests_total" in str(collector.taken))
        requests = total(await service.scrape(), "otlp_requests_total", action="taken")
        assert await reload(service, OTEL_OTLP_ENDPOINT="http://127.0.0.1:9")
        assert total(await service.scrape(), "otlp_requests_total", action="taken") >= requests > 0
        await service.push({**METRIC, "dimensions": {"method": "later"}})
        worker = next(
            one
            for each in service.service.graph.pipelines
            for one in each.delivery.workers
            if one.exporter.id == "otlp"
        )
        await until(lambda: worker.failure is not None)
        assert await reload(service, OTEL_OTLP_ENDPOINT=collector.url)
        await until(lambda: "later" in str(collector.taken))
        assert total(await service.scrape(), "otlp_requests_total", action="taken") > requests
        assert await reload(service, OTEL_OTLP_ENDPOINT="")
        assert len(service.service.graph.pipelines) == 2


async def test_the_log_changes_its_level_and_form(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    try:
        async with running(tmp_path) as service:
            assert await reload(service, LOG_LEVEL="error", LOG_FORMAT="json")
            assert root.level == logging.ERROR
            assert type(root.handlers[0].formatter).__name__ == "JsonFormatter"
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]


async def test_a_key_file_is_read_again(tmp_path: Path) -> None:
    file, old, new = tmp_path / "key", secret(new_key()), secret(new_key())
    file.write_text(old)
    async with running(tmp_path, METRICS_API_KEY_OTHER_FILE=str(file)) as service:

        async def status(key: str) -> int:
            return (await service.client.post("/metrics", json=DOCUMENT, headers={"X-API-Key": key})).status_code

        assert [await status(old), await status(new)] == [200, 401]
        file.write_text(new)
        assert await reload(service)
        assert [await status(old), await status(new), await status(KEY)] == [401, 200, 200]
        file.write_text("")
        assert not await reload(service)
        assert [await status(old), await status(new)] == [401, 200]


DOCUMENT: Mapping[str, Any] = {"service": "test", "metrics": [METRIC]}


def own_port(answer: httpx.Response) -> int:
    """Which connection it came by."""
    assert answer.status_code == 200
    return int(answer.extensions["network_stream"].get_extra_info("client_addr")[1])


def subject(port: int) -> str:
    """The certificate that a new connection is shown."""
    return ssl.get_server_certificate(("127.0.0.1", port))


@BOTH
async def test_a_certificate_is_read_again_and_connections_stay(tmp_path: Path, server: str) -> None:
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.sign("first")
    others = authority.sign("second")
    tls = [
        f"{each}.{option}"
        for each in ("receivers.http", "exporters.prometheus")
        for option in (f"server={server}", f"tls.certificate={certificate}", f"tls.key={key}")
    ]
    async with running(tmp_path, *tls) as service:
        ports = [service.port, httpx.URL(service.scraped).port or 0]
        first = certificate.read_text()
        kept = own_port(await service.push(METRIC))
        assert {await anyio.to_thread.run_sync(subject, port) for port in ports} == {first}
        certificate.write_text(others[0].read_text())
        assert not await reload(service, *tls), "the key is of the other certificate"
        assert await anyio.to_thread.run_sync(subject, service.port) == first
        key.write_text(others[1].read_text())
        assert await reload(service, *tls)
        assert {await anyio.to_thread.run_sync(subject, port) for port in ports} == {certificate.read_text()} != {first}
        assert own_port(await service.push(METRIC)) == kept


async def test_a_clients_certificate_is_read_again(tmp_path: Path) -> None:
    """The options are the same, and what they name is not."""
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.sign("first")
    tls = [f"exporters.otlp.tls.{name}={path}" for name, path in (("certificate", certificate), ("key", key))]
    async with running(tmp_path, *tls, OTEL_OTLP_ENDPOINT="https://127.0.0.1:9") as service:
        otlp = component(service, "otlp")
        assert await reload(service, *tls)
        assert component(service, "otlp") is otlp
        for path, other in zip((certificate, key), authority.sign("second"), strict=True):
            path.write_text(other.read_text())
        assert await reload(service, *tls)
        assert component(service, "otlp") is not otlp
        otlp = component(service, "otlp")
        key.write_text("nothing")
        assert not await reload(service, *tls)
        assert component(service, "otlp") is otlp


async def test_the_digest_is_that_of_the_configuration_in_force(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        before = await service.scrape()
        assert await reload(service, METRICS_RATE_LIMIT="5")
        assert samples(await service.scrape(), prefix="config_info") != samples(before, prefix="config_info")


async def test_the_service_stops_as_ever_after_reloads(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for number in range(3):
            assert await reload(service, METRICS_RATE_LIMIT=str(number + 1000))
        stopped = service.service
    assert not await stopped.reload(lambda: stopped.configuration)


async def test_what_a_request_and_a_connection_may_be_changes(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        (listener,) = service.service.listeners[component(service, "http")]
        assert await reload(
            service,
            "receivers.http.max_request_size=1KB",
            "receivers.http.max_connections=7",
            "receivers.http.trusted_proxies=[127.0.0.0/8]",
        )
        large = [METRIC] * 30
        assert (await service.push(*large)).status_code == 413
        assert listener.guard.limit == 7
        assert await reload(service)
        assert (await service.push(*large)).status_code == 200
