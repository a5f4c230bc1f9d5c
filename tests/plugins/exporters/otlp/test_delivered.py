"""What was counted arrives at a collector, over HTTP and over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.collector import Collector, grpc_collector, http_collector
from tests.running import running

pytestmark = pytest.mark.anyio

Starts = Callable[[], AbstractAsyncContextManager[Collector]]
BOTH = pytest.mark.parametrize(
    ("protocol", "collecting"), [("http/protobuf", http_collector), ("grpc", grpc_collector)], ids=["http", "grpc"]
)
TOTAL = "mcp_auth_requests_total"


def metric(value: float = 1.0, **fields: Any) -> dict[str, Any]:
    return {"type": "auth_request", "value": value, **fields}


@BOTH
async def test_the_series_arrive_equal_to_what_was_counted(protocol: str, collecting: Starts, tmp_path: Path) -> None:
    async with (
        collecting() as collector,
        running(tmp_path, f"exporters.otlp.protocol={protocol}", OTEL_OTLP_ENDPOINT=collector.url) as service,
    ):
        for number in range(5):
            await service.push(*(metric(dimensions={"method": f"m{number % 2}"}, duration_ms=20) for _ in range(10)))
        await service.flush()
        totals = collector.newest(TOTAL)
        assert {dict(attributes)["method"]: value for attributes, value in totals.items()} == {"m0": 30, "m1": 20}
        assert sum(collector.newest("mcp_auth_request_duration_seconds").values()) == pytest.approx(1.0)
