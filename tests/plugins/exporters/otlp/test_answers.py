"""What answers mean: every status and every code has a decision, and nothing that a collector says is beyond reading."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import Blocked, DeliveryError, Oversized, Permanent, Retryable
from plugins.exporters.otlp.answers import (
    _GRPC,
    LONGEST_RETRY_AFTER,
    MOST_TEXT,
    Action,
    Answer,
    of_grpc,
    of_http,
    of_proxy,
    parse_retry_after,
    printable,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
AGAIN = {408, 429, 502, 503, 504}
SEARCHED = {400, 422}
HELD = {401, 403, 404, 405, 407, 415, *range(300, 400)}


def told(answer: Answer, *, hold: bool = True, bisect: bool = True) -> DeliveryError | None:
    return answer.error(hold_credentials=hold, bisect=bisect)


@pytest.mark.parametrize("status", range(200, 600))
def test_every_status(status: int) -> None:
    error = told(of_http(status, {}, "words"))
    if status < 300:
        assert error is None
        return
    assert isinstance(error, Retryable | Permanent)
    assert str(error) == f"HTTP {status}: words"
    assert isinstance(error, Blocked) == (status in HELD)
    assert isinstance(error, Retryable) == (status in HELD | AGAIN)
    assert isinstance(error, Oversized) == (status == 413)
    assert (isinstance(error, Permanent) and error.divide) == (status in SEARCHED | {413})


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode])
def test_every_code(code: str) -> None:
    error = told(of_grpc(code, "words"))
    if code == "OK":
        assert error is None
        return
    again = {
        "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "RESOURCE_EXHAUSTED",
    }  # fmt: skip
    held = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"}
    assert isinstance(error, Blocked) == (code in held)
    assert isinstance(error, Retryable) == (code in held | again)
    assert (isinstance(error, Permanent) and error.divide) == (code == "INVALID_ARGUMENT")


def test_the_table_names_no_code_that_does_not_exist() -> None:
    assert set(_GRPC) <= {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("answer", [of_http(401, {}, ""), of_http(403, {}, ""), of_grpc("PERMISSION_DENIED", "")])
def test_a_credential_that_is_refused_may_make_dead_letters(answer: Answer) -> None:
    held = told(answer)
    assert isinstance(held, Blocked)
    assert held.reason == "credential"
    refused = told(answer, hold=False)
    assert isinstance(refused, Permanent)
    assert not refused.divide


def test_without_bisect_all_of_it_is_set_aside_but_what_is_too_large_is_halved() -> None:
    refused, large = told(of_http(400, {}, ""), bisect=False), told(of_http(413, {}, ""), bisect=False)
    assert isinstance(refused, Permanent)
    assert not refused.divide
    assert isinstance(large, Oversized)


@pytest.mark.parametrize(
    ("text", "too_large"),
    [
        ("SERVER: Received message larger than max (5 vs. 4)", True),
        ("Decompressed message larger than max", True),
        ("grpc: received message after decompression larger than max (5 vs. 4)", True),
        ("gRPC message exceeds maximum size 4194304: 5000000", True),
        ("Received message exceeds the maximum configured message size.", True),
        ("Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes", True),
        ("your rate is larger than your quota", False),
        ("request rate exceeds maximum", False),
        ("sending queue is full", False),
    ],
)
@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "OUT_OF_RANGE"])
def test_a_message_over_the_limit_is_told_from_a_limit_on_how_many(code: str, text: str, too_large: bool) -> None:
    # What comes with a time to wait is no matter of size, and nothing may be set aside for it.
    assert of_grpc(code, text).action is (Action.HALVE if too_large else Action.RETRY)
    assert of_grpc(code, text, 1.0).action is Action.RETRY


@pytest.mark.parametrize("status", range(100, 600))
def test_whatever_a_proxy_says_nothing_is_given_up(status: int) -> None:
    error = told(of_proxy(status, "no"), hold=False)
    assert isinstance(error, Retryable)
    assert isinstance(error, Blocked) == (status < 500 and status not in (408, 429))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0), ("1", 1), (" 17 ", 17), ("300", 300), ("301", 300), ("1000000000", 300), ("9" * 5000, 300),
        ("0000000000005", 5), (format_datetime(NOW + timedelta(seconds=30)), 30),
        (format_datetime(NOW - timedelta(days=1)), 0), (format_datetime(NOW + timedelta(days=1)), 300),
        ("Mon, 23 Nov 2026 12:00:09 GMT", 9), ("Mon, 23 Nov 2026 12:00:09", 9), ("Monday, 23-Nov-26 12:00:09 GMT", 9),
        ("Mon Nov 23 12:00:09 2026", 9), ("-1", None), ("1.5", None), ("soon", None), ("", None), (None, None),
        ("1e9", None), ("٣", None), ("Mon, 99 Nov 2026 12:00:09 GMT", None), ("1 2", None), ("0x10", None),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


DATES = st.from_regex(
    r"([A-Z][a-z]{2}, )?-?\d{1,12} [A-Z][a-z]{2} \d{1,6}( \d{1,3}:\d{1,3}(:\d{1,3})?)?( ([+-]\d{1,12}|GMT|EST))?"
)


@given(st.text() | DATES | st.integers().map(str) | st.datetimes().map(format_datetime))
@example("Mon, 23 Nov 2026 12:00:09 +99999999999999999999")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example(",")
@example("1 Jan")
def test_retry_after_is_never_more_than_a_few_minutes_and_never_an_error(value: str) -> None:
    seconds = parse_retry_after(value)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


@given(st.floats() | st.none())
def test_a_retry_info_is_held_to_the_same_bounds(seconds: float | None) -> None:
    waits = of_grpc("UNAVAILABLE", "", seconds).retry_after
    assert waits is None or 0 <= waits <= LONGEST_RETRY_AFTER


@given(st.text(st.characters(), max_size=3000))
@example("\x1b" * 600)
@example("\ud800")
@example("\u202e\u2028\x9b")
def test_a_collectors_words_are_one_line_that_moves_no_cursor(text: str) -> None:
    shown = printable(text)
    assert len(shown) <= MOST_TEXT
    assert shown.isprintable()
    shown.encode()


@given(st.text(st.characters(), max_size=100), st.sampled_from([*grpc.StatusCode]), st.floats() | st.none())
def test_no_words_are_beyond_reading(text: str, code: grpc.StatusCode, seconds: float | None) -> None:
    for answer in (of_grpc(code.name, text, seconds), of_http(429, {"Retry-After": text}, text)):
        error = told(answer)
        assert error is None or str(error).isprintable()
