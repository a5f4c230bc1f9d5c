"""The table of answers, done: what an exporter in front of a real journal does about each one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from aiohttp import web
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import Blocked
from pipeline.testing import metric_batch
from tests.collector import Collector, grpc_collector, http_collector
from tests.plugins.exporters.otlp.forwarding import Forwarding, forwarding, request_values

pytestmark = pytest.mark.anyio

VALUES = [float(number) for number in range(1, 9)]
POISON = 3.0
EACH_ONCE = Counter(VALUES)
LARGER = "SERVER: Received message larger than max (4194305 vs. 4194304)"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(Blocked, "PROBE_SECONDS", 0.01)


@asynccontextmanager
async def over(protocol: str, folder: Path, **options: Any) -> AsyncIterator[tuple[Collector, Forwarding]]:
    """A collector, and an exporter that sends to it."""
    collecting = http_collector if protocol == "http" else grpc_collector
    async with collecting() as collector:
        chosen = {"endpoint": collector.url, "protocol": "grpc" if protocol == "grpc" else "http/protobuf", **options}
        async with forwarding(folder, **chosen) as found:
            yield collector, found


def answers(
    collector: Collector, answer: Any, when: Callable[[ExportMetricsServiceRequest], bool] = lambda request: True
) -> None:
    """Have it answer so, an HTTP status or a gRPC code with or without details, when that is true, else with success."""

    def http(request: ExportMetricsServiceRequest) -> web.Response | None:
        if not when(request):
            return None
        return answer() if callable(answer) else web.Response(status=answer, text="its own words")

    def rpc(request: ExportMetricsServiceRequest) -> tuple[Any, ...] | None:
        if not when(request):
            return None
        return answer if isinstance(answer, tuple) else (answer, "its own words")

    collector.answer_http, collector.answer_grpc = http, rpc


def taken(collector: Collector) -> Counter[float]:
    """How often each value was taken."""
    return Counter(value for request in collector.taken for value in request_values(request))


def row(protocol: str, answer: Any, **options: Any) -> Any:
    """A row of the table; its id reads as what the collector says."""
    name = answer.name if isinstance(answer, grpc.StatusCode) else str(answer)
    if isinstance(answer, tuple):
        name = f"{answer[0].name} {answer[1][:20]}"
    more = "".join(f" {key}={value}" for key, value in options.items())
    return pytest.param(protocol, answer, options, id=f"{protocol} {name}{more}")


def table(*rows: Any) -> Any:
    return pytest.mark.parametrize(("protocol", "answer", "options"), rows)


@table(
    *(row("http", status) for status in (408, 429, 502, 503, 504)),
    *(
        row("grpc", code)
        for code in (
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.OUT_OF_RANGE,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DATA_LOSS,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
    ),
)
async def test_sent_again(protocol: str, answer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    async with over(protocol, tmp_path, **options) as (collector, found):
        answers(collector, answer, lambda request: collector.requests <= 3)
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert taken(collector) == EACH_ONCE
        assert collector.requests == 4
        assert found.worker.handover.attempts.failed_tries == 3
        assert (found.worker.failure, found.blocked, found.dead_letters()) == (None, None, [])
        assert found.counted("otlp_requests_total", action="retry") == 3
        assert found.counted("otlp_requests_total", action="taken") == 1
        # Before these nothing was read, or all of it refused; the others may have come through.
        refused = (429, 503, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS)
        assert found.counted("otlp_ambiguous_requests_total") == (0 if answer in refused else 3)


@table(
    *(row("http", status) for status in (413,)),
    row("grpc", (grpc.StatusCode.RESOURCE_EXHAUSTED, LARGER)),
    row("grpc", (grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5000000 vs. 4194304)")),
    row("grpc", (grpc.StatusCode.RESOURCE_EXHAUSTED, "gRPC message exceeds maximum size 4194304: 5000000")),
    row("grpc", (grpc.StatusCode.OUT_OF_RANGE, "Error, decoded message length too large: found 5000000 bytes")),
)
async def test_halved(protocol: str, answer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    async with over(protocol, tmp_path, **options) as (collector, found):
        answers(collector, answer, lambda request: len(request_values(request)) > 2 or POISON in request_values(request))
        await found.put(metric_batch(*VALUES[:4]), metric_batch(*VALUES[4:]))
        await found.done()
        assert taken(collector) == Counter(set(VALUES) - {POISON})
        ((values, reason),) = found.dead_letters()
        assert values == [POISON]
        assert ("its own words" if protocol == "http" else answer[1]) in reason
        assert found.worker.handover.attempts.failed_tries == 0


@table(
    *(row("http", status) for status in (400, 422)),
    row("grpc", grpc.StatusCode.INVALID_ARGUMENT),
)
async def test_searched_for_the_point_at_fault(
    protocol: str, answer: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    async with over(protocol, tmp_path, **options) as (collector, found):
        answers(collector, answer, lambda request: POISON in request_values(request))
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert taken(collector) == Counter(set(VALUES) - {POISON})
        ((values, reason),) = found.dead_letters()
        assert (values, reason.endswith("its own words")) == ([POISON], True)
        assert collector.requests <= 2 * 3 + 2
        assert found.worker.handover.dead_lettered == 1


@table(
    *(row("http", status) for status in (402, 409, 410, 418, 500, 501, 505, 599)),
    *(row("http", status, bisect=False) for status in (400, 422)),
    *(row("http", status, on_auth_error="dead_letter") for status in (401, 403)),
    *(
        row("grpc", code)
        for code in (
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ALREADY_EXISTS,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.INTERNAL,
        )
    ),
    row("grpc", grpc.StatusCode.INVALID_ARGUMENT, bisect=False),
    *(
        row("grpc", code, on_auth_error="dead_letter")
        for code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    ),
)
async def test_dead_letters_at_once(protocol: str, answer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    async with over(protocol, tmp_path, **options) as (collector, found):
        answers(collector, answer, lambda request: POISON in request_values(request))
        await found.put(metric_batch(*VALUES), metric_batch(9.0))
        await found.done()
        assert [values for values, _ in found.dead_letters()] == [VALUES]
        assert taken(collector) == Counter([9.0])
        assert collector.requests == 2


@table(
    *(row("http", status) for status in (301, 302, 303, 307, 308, 401, 403, 404, 405, 407, 415)),
    *(
        row("grpc", code)
        for code in (
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNIMPLEMENTED,
        )
    ),
)
async def test_held_until_a_person_has_mended_it(
    protocol: str, answer: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    reasons = {401: "credential", 403: "credential", 407: "proxy", 415: "protocol"}
    codes = {grpc.StatusCode.UNIMPLEMENTED: "protocol"}
    right = reasons.get(answer, "address") if protocol == "http" else codes.get(answer, "credential")
    async with over(protocol, tmp_path, **options) as (collector, found):
        answers(collector, answer)
        await found.put(metric_batch(*VALUES))
        await found.failed(3)
        assert found.blocked == right
        assert "its own words" in (found.worker.failure or "")
        assert found.worker.position == 0
        answers(collector, answer, lambda request: False)
        await found.done()
        assert (found.blocked, found.worker.failure) == (None, None)
        assert taken(collector) == EACH_ONCE
        assert found.dead_letters() == []


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async with (
        http_collector() as elsewhere,
        over("http", tmp_path, headers={"Authorization": "Bearer hush"}) as (collector, found),
    ):
        to = {"Location": f"{elsewhere.url}/v1/metrics"}
        answers(collector, lambda: web.Response(status=307, headers=to))
        await found.put(metric_batch())
        await found.failed(2)
        assert elsewhere.requests == 0
        assert {each["Authorization"] for each in collector.headers} == {"Bearer hush"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_points_that_it_rejects_are_counted_and_not_sent_again(
    protocol: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with over(protocol, tmp_path) as (collector, found):
        partial = collector.response.partial_success
        partial.rejected_data_points, partial.error_message = 2, "too\nold \x1b[31m"
        await found.put(*(metric_batch(value) for value in VALUES))
        await found.done()
        partial.rejected_data_points, partial.error_message = 0, "please send less"
        await found.put(metric_batch(9.0), metric_batch(10.0))
        await found.done()
        assert taken(collector) == Counter([*VALUES, 9.0, 10.0])
        assert found.counted("otlp_rejected_items_total") == 2 * sum(
            1 for each in collector.taken if not {9.0, 10.0} & set(request_values(each))
        )
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert said == ["it rejected points (2 now): too old \\x1b[31m", "it says: please send less"]


@pytest.mark.parametrize("body", [b"", b"<html>welcome</html>", b"\xff" * 100, b'{"partialSuccess":{}}'])
async def test_success_is_success_whatever_its_body(
    body: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with over("http", tmp_path) as (collector, found):
        answers(collector, lambda: web.Response(body=body))
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert collector.requests == 1
        assert found.counted("otlp_bad_replies_total") == bool(body)
        assert any("is this a collector?" in record.getMessage() for record in caplog.records) == bool(body)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "waits"),
    [
        ("1", True), ("1000000000", True), ("Wed, 21 Oct 2065 07:28:00 GMT", True),
        ("0", False), ("-1", False), ("soon", False), ("Wed, 21 Oct 2015 07:28:00 GMT", False),
    ],
)  # fmt: skip
async def test_it_waits_as_long_as_it_is_asked_within_bounds(
    status: int, header: str, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.LONGEST_RETRY_AFTER", 0.3)
    at: list[float] = []
    async with over("http", tmp_path) as (collector, found):

        def refused() -> web.Response:
            return web.Response(status=status, headers={"Retry-After": header})

        answers(collector, refused, lambda request: at.append(anyio.current_time()) or len(at) == 1)
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert (at[1] - at[0] >= 0.29) == waits
        assert taken(collector) == EACH_ONCE


async def test_it_waits_as_long_as_a_retry_info_asks(tmp_path: Path) -> None:
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=Duration(nanos=300_000_000)))
    status = Status(code=8, details=[AnyMessage(type_url="type.googleapis.com/unknown"), detail]).SerializeToString()
    trailing = (("grpc-status-details-bin", status),)
    at: list[float] = []
    async with over("grpc", tmp_path) as (collector, found):
        answers(
            collector,
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than you may send now", trailing),
            lambda request: at.append(anyio.current_time()) or len(at) == 1,
        )
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert at[1] - at[0] >= 0.29
        assert taken(collector) == EACH_ONCE
