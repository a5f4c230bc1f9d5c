"""What a collector says beside yes and no: words, times, other addresses; and success in another form than OTLP's."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import grpc
import pytest
from aiohttp import web
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from pipeline import Blocked
from pipeline.testing import metric_batch
from tests.collector import http_collector
from tests.plugins.exporters.otlp.forwarding import answers, first, over, request_values, taken

pytestmark = pytest.mark.anyio

VALUES = [1.0, 2.0, 3.0, 4.0]
EACH_ONCE = Counter(VALUES)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(Blocked, "PROBE_SECONDS", 0.01)


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

        answers(collector, refused, first(at))
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
            first(at),
        )
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert at[1] - at[0] >= 0.29
        assert taken(collector) == EACH_ONCE


async def test_an_answer_over_grpc_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    async with over("grpc", tmp_path) as (collector, found):
        collector.response.partial_success.error_message = "x" * 5_000_000
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert taken(collector) == EACH_ONCE
        ((values, reason),) = found.dead_letters()
        assert (values, "the answer is larger than 4194304 bytes" in reason) == (VALUES, True)


@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_more_than_a_collector_takes_over_grpc_is_halved(compression: str, tmp_path: Path) -> None:
    """What its library says of a message over its limit, 4 MiB, not what we think that it says."""
    async with over("grpc", tmp_path, size=4, max_request_size="100MB", compression=compression) as (collector, found):
        # One batch, since a first delivery of several ends before that limit (pipeline/memory.py).
        each = [metric_batch(value, labels={"padding": "x" * 1_500_000}) for value in VALUES]
        await found.put(each[0].replace(request=b"".join(one.request for one in each), points=len(each)))
        await found.delivery.flush()
        assert taken(collector) == EACH_ONCE
        assert (len(collector.taken), found.dead_letters()) == (2, [])
