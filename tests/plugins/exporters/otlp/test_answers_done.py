"""The table of answers, done: what an exporter in front of a real journal does about each one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from pipeline import Blocked
from pipeline.testing import metric_batch
from tests.plugins.exporters.otlp.forwarding import answers, over, request_values, taken

pytestmark = pytest.mark.anyio

VALUES = [float(number) for number in range(1, 9)]
POISON = 3.0
EACH_ONCE = Counter(VALUES)
LARGER = "SERVER: Received message larger than max (4194305 vs. 4194304)"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(Blocked, "PROBE_SECONDS", 0.01)


def row(protocol: str, answer: Any, **options: Any) -> Any:
    """A row of the table; its id reads as what the collector says."""
    name = answer.name if isinstance(answer, grpc.StatusCode) else str(answer)
    if isinstance(answer, tuple):
        name = f"{answer[0].name} {answer[1][:20]}"
    more = "".join(f" {key}={value}" for key, value in options.items())
    return pytest.param(protocol, answer, options, id=f"{protocol} {name}{more}")


def table(*rows: Any) -> pytest.MarkDecorator:
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
        refused = (
            429,
            503,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.OUT_OF_RANGE,
            grpc.StatusCode.DATA_LOSS,
        )
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
        answers(
            collector, answer, lambda request: len(request_values(request)) > 2 or POISON in request_values(request)
        )
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
        assert [found.blocked, found.worker.failure] == [None, None]
        assert taken(collector) == EACH_ONCE
        assert found.dead_letters() == []
