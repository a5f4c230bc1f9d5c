"""`POST /metrics`, on both servers: every rule of the body, and every way to be refused."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from tests.running import running

pytestmark = pytest.mark.anyio

METRIC = {"type": "auth_request", "value": 1.0}
TYPES = [
    "auth_request",
    "tool_discovery",
    "tool_execution",
    "registry_operation",
    "health_check",
    "protocol_latency",
    "custom",
]

ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "GZIP": gzip.compress,
}

GOOD_DOCUMENTS: list[dict[str, Any]] = [
    {"service": "a"},
    {"service": "A-z_0" * 20},
    {"version": None, "instance_id": None},
    {"version": "v" * 64, "instance_id": "i.9-_" * 20},
    {"version": "not semantic"},
    {"unknown": {"field": 1}},
    {"metrics": [METRIC] * 10_000},
]
BAD_DOCUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"service": ""}, "service"),
    ({"service": "a" * 101}, "service"),
    ({"service": "a.b"}, "service"),
    ({"service": "café"}, "service"),
    ({"service": "a\n"}, "service"),
    ({"service": 7}, "service"),
    ({"service": None}, "service"),
    ({"version": "v" * 65}, "version"),
    ({"version": 2}, "version"),
    ({"instance_id": ""}, "instance_id"),
    ({"instance_id": "a b"}, "instance_id"),
    ({"instance_id": "i" * 101}, "instance_id"),
    ({"metrics": []}, "metrics"),
    ({"metrics": None}, "metrics"),
    ({"metrics": {"type": "custom"}}, "metrics"),
    ({"metrics": "custom"}, "metrics"),
]
GOOD_METRICS: list[dict[str, Any]] = [
    *({"type": type_} for type_ in TYPES),
    {"value": 0},
    {"value": -1e12},
    {"value": 1e12},
    {"duration_ms": 0},
    {"duration_ms": 86_400_000},
    {"duration_ms": None, "timestamp": None, "dimensions": None, "metadata": None},
    {"timestamp": "2024-05-06T07:08:09"},
    {"timestamp": "2024-05-06T07:08:09.123456Z"},
    {"timestamp": "2024-05-06 07:08:09+02:00"},
    {"timestamp": (datetime.now(UTC) + timedelta(minutes=4)).isoformat()},
    {"dimensions": {f"d{number}": number for number in range(20)}},
    {"dimensions": {"_": "x" * 200, "A1": True, "b": None, "c": 2**63 - 1, "d": -(2**63), "e" * 50: 1.5}},
    {"metadata": {f"m {number}": [{"any": None}] for number in range(30)}},
    {"metadata": {"k" * 50: "x" * 1000}},
    {"unknown": 1},
]
BAD_METRICS: list[tuple[Any, str]] = [
    ({"type": "unheard_of"}, "type"),
    ({"type": None}, "type"),
    ({"value": "1"}, "value"),
    ({"value": None}, "value"),
    ({"value": True}, "value"),
    ({"value": 1.1e12}, "value"),
    ({"value": -1.1e12}, "value"),
    ({"duration_ms": -0.1}, "duration_ms"),
    ({"duration_ms": 86_400_001}, "duration_ms"),
    ({"timestamp": "yesterday"}, "timestamp"),
    ({"timestamp": 1700000000}, "timestamp"),
    ({"timestamp": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}, "timestamp"),
    ({"dimensions": {f"d{number}": number for number in range(21)}}, "dimensions"),
    ({"dimensions": {"": 1}}, "dimensions"),
    ({"dimensions": {"1a": 1}}, "dimensions"),
    ({"dimensions": {"a-b": 1}}, "dimensions"),
    ({"dimensions": {"a" * 51: 1}}, "dimensions"),
    ({"dimensions": {"a": "x" * 201}}, "dimensions"),
    ({"dimensions": {"a": [1]}}, "dimensions"),
    ({"dimensions": {"a": 2**63}}, "dimensions"),
    ({"dimensions": ["a"]}, "dimensions"),
    ({"metadata": {f"m{number}": number for number in range(31)}}, "metadata"),
    ({"metadata": {"": 1}}, "metadata"),
    ({"metadata": {"k" * 51: 1}}, "metadata"),
    ({"metadata": {"k": "x" * 1001}}, "metadata"),
    ({"metadata": {"k": [2**64]}}, "metadata"),
    ({"metadata": "text"}, "metadata"),
]


def assert_error(answer: httpx.Response, status: int) -> Any:
    """The usual form of an error; gives its detail."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"detail", "status_code", "request_id"}
    assert (answer.json()["status_code"], answer.json()["request_id"]) == (status, answer.headers["X-Request-ID"])
    return answer.json()["detail"]


async def test_what_the_rules_allow_is_accepted_whole(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        pushed = 0
        for document in [*GOOD_DOCUMENTS, *({"metrics": [METRIC | change]} for change in GOOD_METRICS)]:
            document = {"service": "test", "metrics": [METRIC]} | document
            answer = await service.client.post("/metrics", json=document)
            assert answer.status_code == 200, document
            count = len(document["metrics"])
            assert answer.json() == {
                "status": "success",
                "accepted": count,
                "rejected": 0,
                "errors": [],
                "request_id": answer.headers["X-Request-ID"],
            }
            pushed += count
        await service.flush()
        assert service.rows() == [(pushed,)]


async def test_a_document_that_breaks_a_rule_is_422_with_its_place(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        missing: list[tuple[Any, list[str]]] = [
            ({}, ["service", "metrics"]),
            ({"service": "a"}, ["metrics"]),
            ({"metrics": [METRIC]}, ["service"]),
        ]
        for document, absent in missing:
            details = assert_error(await service.client.post("/metrics", json=document), 422)
            assert [detail["loc"] for detail in details] == [["body", name] for name in absent]
        for change, place in BAD_DOCUMENTS:
            document = {"service": "test", "metrics": [METRIC]} | change
            (detail,) = assert_error(await service.client.post("/metrics", json=document), 422)
            assert set(detail) == {"type", "loc", "msg", "input"}, change
            assert detail["loc"] == ["body", place]
        for content in (b"[]", b"null", b'"text"', b"7"):
            (detail,) = assert_error(await service.client.post("/metrics", content=content), 422)
            assert detail["loc"] == ["body"]
        await service.flush()
        assert service.rows() == [(0,)]


async def test_one_bad_metric_does_not_take_the_good_ones_with_it(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        for change, place in BAD_METRICS:
            answer = await service.push(METRIC, METRIC | change, METRIC)
            assert answer.status_code == 200, change
            body = answer.json()
            assert (body["status"], body["accepted"], body["rejected"]) == ("partial", 2, 1)
            assert body["errors"]
            assert all(error.startswith(f"metrics[1].{place}") and ": " in error for error in body["errors"]), body
        no_metrics: list[Any] = [None, 7, [], "custom", {}, {"type": "custom"}, {"value": 1}]
        for metric in no_metrics:
            answer = await service.push(METRIC, metric)
            assert (answer.json()["accepted"], answer.json()["rejected"]) == (1, 1), metric
        await service.flush()
        assert service.rows() == [(2 * len(BAD_METRICS) + 7,)]


async def test_a_push_of_which_nothing_is_good_is_422_with_all_reasons(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        answer = await service.push(*(METRIC | change for change, _ in BAD_METRICS))
        assert answer.status_code == 422
        body = answer.json()
        assert (body["status"], body["accepted"], body["rejected"]) == ("error", 0, len(BAD_METRICS))
        assert len({error.partition(".")[0] for error in body["errors"]}) == len(BAD_METRICS)
        assert body["request_id"] == answer.headers["X-Request-ID"]


async def test_errors_list_a_hundred_and_then_say_how_many_more(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        errors = (await service.push(METRIC, *({"type": "custom", "value": "x"},) * 250)).json()["errors"]
        assert len(errors) == 101
        assert errors[99].startswith("metrics[100].value: ")
        assert "150" in errors[100]


async def test_more_metrics_than_the_limit_are_too_large(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, "processors.validate.max_metrics=3") as service:
        assert (await service.push(*[METRIC] * 3)).status_code == 200
        assert "3" in assert_error(await service.push(*[METRIC] * 4), 413)


@pytest.mark.parametrize("encoding", list(ENCODE))
async def test_a_body_may_be_compressed(tmp_path: Path, server: str, encoding: str) -> None:
    async with running(tmp_path, server) as service:
        content = ENCODE[encoding](json.dumps({"service": "test", "metrics": [METRIC]}).encode())
        answer = await service.client.post("/metrics", content=content, headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        # As may one of any other route.
        answer = await service.client.post("/flush", content=content, headers={"Content-Encoding": encoding})
        assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate", "zstd"])
async def test_the_largest_body_is_limited_before_and_after_decompression(
    tmp_path: Path, server: str, encoding: str
) -> None:
    async with running(tmp_path, server, MAX_REQUEST_SIZE="2000") as service:
        document = json.dumps({"service": "test", "metrics": [METRIC]}).encode()
        headers = {"Content-Encoding": encoding}
        for padding, status in [(2000 - len(document), 200), (2001 - len(document), 413)]:
            content = ENCODE[encoding](document + b" " * padding)
            assert len(content) <= 2001
            answer = await service.client.post("/metrics", content=content, headers=headers)
            assert answer.status_code == status
        assert "2000 bytes" in assert_error(answer, 413)
        answer = await service.client.post("/metrics", content=b"x" * 2001, headers=headers)
        assert_error(answer, 413)

        async def chunks() -> Any:
            for _ in range(21):
                yield b" " * 100

        assert_error(await service.client.post("/metrics", content=chunks(), headers=headers), 413)
        assert_error(await service.client.post("/flush", content=chunks(), headers=headers), 413)


async def test_what_cannot_be_read_is_400(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        number = '{"service": "a", "metrics": [{"type": "custom", "value": %s}]}'
        for content in [b"", b"{", b"{}x", b"\xff", b'{"service": "\xff', b"[" * 100_000, b"\xef\xbb\xbf{}"]:
            assert_error(await service.client.post("/metrics", content=content), 400)
        for value in ("NaN", "Infinity", "-Infinity", "0x1", "01", "1."):
            assert_error(await service.client.post("/metrics", content=number % value), 400)
        for encoding in ("gzip", "deflate", "zstd"):
            headers = {"Content-Encoding": encoding}
            assert_error(await service.client.post("/metrics", content=b"plain", headers=headers), 400)


async def test_only_json_is_taken(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        content = json.dumps({"service": "test", "metrics": [METRIC]}).encode()
        for kind, status in [
            (None, 200),
            ("application/json", 200),
            ("Application/JSON; charset=UTF-8", 200),
            ('application/json;charset="utf-8"', 200),
            ("application/json; charset=latin-1", 415),
            ("text/plain", 415),
            ("application/x-www-form-urlencoded", 415),
            ("application/jsonx", 415),
            ("", 415),
        ]:
            headers = {} if kind is None else {"Content-Type": kind}
            answer = await service.client.post("/metrics", content=content, headers=headers)
            assert answer.status_code == status, kind
        for encoding in ("br", "compress", "gzip, gzip", ""):
            headers = {"Content-Encoding": encoding}
            assert_error(await service.client.post("/metrics", content=content, headers=headers), 415)


@pytest.mark.parametrize("encoding", ENCODE)
async def test_characters_that_text_cannot_hold_cost_one_character_and_no_metric(
    tmp_path: Path, server: str, encoding: str
) -> None:
    values = (rb"\ud83c", b"\xff", rb"\u0000")
    metrics = [b'{"type":"custom","value":1,"dimensions":{"tool":"a%s"},"x":"%s"}' % (value, value) for value in values]
    name = b'{"type":"custom","value":1,"dimensions":{"a%s":1}}' % values[0]
    body = b'{"service":"s","x":"\xed\xa0\x80","metrics":[%s,%s]}' % (b",".join(metrics), name)
    async with running(tmp_path, server) as service:
        headers = {"Content-Encoding": encoding}
        answer = await service.client.post("/metrics", content=ENCODE[encoding.lower()](body), headers=headers)
        assert answer.status_code == 200
        said = answer.json()
        assert (said["status"], said["accepted"], said["rejected"]) == ("partial", 3, 1)
        replaced = "invalid characters were replaced by U+FFFD"
        assert said["warnings"] == [f"metrics[{place}].dimensions.tool: {replaced}" for place in range(3)]
        assert [error.partition(": ")[0] for error in said["errors"]] == ["metrics[3].dimensions"]
        await service.flush()
        assert service.rows("SELECT dimensions FROM metrics") == [('{"tool":"a\ufffd"}',)] * 3
        assert (await service.push(METRIC)).json().keys() == said.keys() - {"warnings"}
