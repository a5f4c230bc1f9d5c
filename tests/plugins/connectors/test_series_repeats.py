"""Series that do not change are given on all the same, for who receives OTLP, and only for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.collector import http_collector
from tests.running import running

pytestmark = pytest.mark.anyio

TOTAL = "mcp_auth_requests_total"
EVENT = {"type": "auth_request", "value": 1}


async def test_a_series_that_does_not_change_is_given_on_again_with_a_later_time(tmp_path: Path) -> None:
    async with (
        http_collector() as collector,
        running(
            tmp_path,
            "connectors.series.repeat_interval=50ms",
            "processors.batch.size=1",
            OTEL_OTLP_ENDPOINT=collector.url,
        ) as service,
    ):
        await service.push(EVENT)
        await collector.until(lambda: sum(name == TOTAL for _, name, *_ in collector.points) >= 3)
        points = [(value, time) for _, name, _, value, time in collector.points if name == TOTAL]
        assert {value for value, _ in points} == {1.0}
        times = [time for _, time in points]
        assert times == sorted(set(times)), "each repetition is a newer point"


@pytest.mark.parametrize(("variables", "repeats"), [({}, None), ({"OTEL_OTLP_ENDPOINT": "http://127.0.0.1:9"}, 60.0)])
async def test_the_shipped_configuration_repeats_where_it_forwards(
    variables: dict[str, str], repeats: float | None, tmp_path: Path
) -> None:
    async with running(tmp_path, **variables) as service:
        (series,) = (each for each in service.service.graph.components() if each.id == "series")
        assert series.config.repeat_interval == repeats
