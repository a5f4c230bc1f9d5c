"""Whoever may push cannot break a scrape: it stays valid and bounded, and what was accepted is stored in full."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from tests.running import Running, running
from tests.scrapes import samples, total

pytestmark = pytest.mark.anyio

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
CONTROLS = "".join(map(chr, [*range(1, 32), 127, 0x85, 0x2028, 0x2029, 0xFEFF, 0xFFFF]))


def made_up(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Events with labels that never come again, and names, types and values that somebody with bad intent would choose."""
    chosen = random.Random(seed)
    texts = ['"} 1\nfake_total 5', "\\", "\\n", "", " ", "ü" * 200, CONTROLS, "{}", "#", "a,b=c", "NaN"]
    types = ["auth_request", "tool_execution", "custom", "protocol_latency", "health_check"]
    values = [1, 0, -1, 1e12, -1e12, 1e-300, 0.1]
    for number in range(count):
        name = chosen.choice(["server", "tool_name", "user_hash", "metric_name", "flow_step", "endpoint"])
        dimensions = {
            name: chosen.choice(texts) if number % 5 == 0 else f"{chosen.getrandbits(60):x}",
            "success": chosen.choice([True, False, None, 1, 1.5, "true"]),
            "le": "5",
            "service": "another",
            "metric_type": "another",
            "otel_metric_overflow": "true",
            f"name_{number}": "rotating",
        }
        yield {
            "type": chosen.choice(types),
            "value": chosen.choice(values),
            "duration_ms": chosen.choice([None, 0, 86_400_000, 1e-9]),
            "dimensions": dimensions,
        }


async def push(service: Running, metrics: list[dict[str, Any]]) -> int:
    """Push them, and give how many were accepted."""
    document = json.dumps({"service": f"service-{random.getrandbits(40)}", "metrics": metrics})
    answer = await service.client.post("/metrics", content=document, timeout=30)
    return int(answer.json()["accepted"])


async def test_labels_that_never_come_again_leave_the_scrape_valid_and_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, "connectors.series.max_series=100") as service:
        accepted = 0
        for seed in range(10):
            accepted += await push(service, list(made_up(1000, seed)))
            shown = samples(await service.scrape())
            openmetrics = await service.scrape(Accept=OPENMETRICS)
            assert list(openmetrics_families(openmetrics))  # type: ignore[no-untyped-call]
        assert accepted == 10_000
        label_sets = {frozenset(dict(labels).items()) for name, labels in shown if name.endswith(("_total", "_value"))}
        assert len(label_sets) <= 5 * 101
        await service.flush()
        assert service.rows() == [(accepted,)]
        ((added,),) = service.rows("SELECT sum(value) FROM metrics WHERE metric_type = 'auth_request' AND value >= 0")
        text = await service.scrape()
        assert total(text, "mcp_auth_requests_total") == pytest.approx(added)
        assert total(text, "mcp_auth_requests_total", otel_metric_overflow="true") > 0
        ((refused,),) = service.rows("SELECT count(*) FROM metrics WHERE metric_type = 'auth_request' AND value < 0")
        assert total(text, "series_negative_events_total", metric_type="auth_request") == refused


@pytest.mark.parametrize(
    "dimensions",
    ['{"le\\n": "5"}', '{"": "x"}', '{"__name__\\n": "x"}', '{"a-b": "x"}', '{"a=\\"x\\",b": "x"}'],
)
async def test_a_name_that_only_looks_right_is_refused_and_shows_nowhere(tmp_path: Path, dimensions: str) -> None:
    async with running(tmp_path) as service:
        body = f'{{"service": "s", "metrics": [{{"type": "custom", "value": 1, "dimensions": {dimensions}}}]}}'
        answer = await service.client.post("/metrics", content=body)
        assert answer.status_code == 422
        assert samples(await service.scrape()) == {}


async def test_a_lone_surrogate_is_shown_as_any_other_odd_character(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        body = (
            b'{"service": "s", "metrics": [{"type": "custom", "value": 1, "dimensions": {"metric_name": "a\\ud800"}}]}'
        )
        assert (await service.client.post("/metrics", content=body)).status_code == 200
        assert 'metric_name="a_"' in await service.scrape()
