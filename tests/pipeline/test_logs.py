"""Log lines: for machines exactly the guide's fields, for people nothing that a terminal would act on."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.logs import JsonFormatter, TextFormatter, set_up_logs
from plugins.extensions.api_keys.keys import new_key


def record(message: str, *arguments: Any, error: bool = False, **extra: Any) -> logging.LogRecord:
    """As `log.info(message, *arguments, extra=extra)` makes it, at one second past noon."""
    made = logging.getLogger("receiver.http").makeRecord(
        "receiver.http", logging.INFO, "f.py", 1, message, arguments, sys.exc_info() if error else None, extra=extra
    )
    made.created = datetime(2026, 7, 1, 12, 0, 1, 500_000, UTC).timestamp()
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert line.isascii()
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_a_json_line_has_the_fields_of_the_guide_and_then_the_extra_ones() -> None:
    fields = as_json(
        record("Processed %s", "metrics", request_id="req_1", service="auth-server", accepted=5, duration_ms=45.2)
    )
    assert list(fields.items()) == [
        ("timestamp", "2026-07-01T12:00:01.500Z"),
        ("level", "INFO"),
        ("logger", "receiver.http"),
        ("message", "Processed metrics"),
        ("request_id", "req_1"),
        ("service", "auth-server"),
        ("accepted", 5),
        ("duration_ms", 45.2),
    ]


def test_a_json_line_without_extra_fields_has_only_the_four_of_the_guide() -> None:
    assert list(as_json(record("text"))) == ["timestamp", "level", "logger", "message"]


def test_extra_fields_cannot_pass_for_those_of_the_guide() -> None:
    fields = as_json(record("text", level="FAKE", timestamp=1, logger="x"))
    assert (fields["level"], fields["timestamp"], fields["logger"]) == (
        "INFO",
        "2026-07-01T12:00:01.500Z",
        "receiver.http",
    )


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_key_that_a_client_put_in_the_wrong_place_is_masked(formatter: logging.Formatter) -> None:
    key = new_key()
    try:
        raise ValueError(f"not so: {key}")
    except ValueError:
        line = formatter.format(record("%s %s", key, "mcp_metrics_x", error=True, request_id=key))
    assert key[12:] not in line
    assert line.count("mcp_metrics_***") == 4


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_key_that_was_cut_is_masked_as_well(formatter: logging.Formatter) -> None:
    key = new_key()  # so that both modules agree on how one begins
    for length in range(len("mcp_metrics_") + 1, len(key)):
        line = formatter.format(record("got %s, and so on", f"'Bearer {key[:length]}…", reason=f"{key[:length]}…"))
        assert line.count("mcp_metrics_***") == 2
        assert len(re.findall(r"mcp_metrics_[^*]", line)) == 0


def test_an_exception_is_one_more_field() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        fields = as_json(record("failed", error=True))
    assert list(fields)[4:] == ["exception"]
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("ValueError: two\nlines")


@given(st.text() | st.just("\ud800\x00\u2028"), st.integers() | st.text() | st.lists(st.text()) | st.dates())
def test_no_line_is_lost_whatever_it_says(text: str, value: Any) -> None:
    fields = as_json(record("%s", text, value=value))
    assert fields["message"] == text
    assert fields["value"] == (str(value) if hasattr(value, "isoformat") else value)
    assert "\n" not in TextFormatter().format(record("%s", text, value=value))


def test_a_text_line_is_time_level_logger_message_and_the_extra_fields() -> None:
    line = TextFormatter().format(record("Processed %s", "metrics", accepted=5, service=None))
    assert line == "12:00:01.500 INFO    receiver.http: Processed metrics accepted=5 service=None"


def test_control_characters_in_a_text_line_are_escaped() -> None:
    line = TextFormatter().format(record("a\n12:00 INFO fake\x1b[31m", version="\r\u2028\u202e\x9b\ud800ü"))
    assert line.endswith(r"receiver.http: a\n12:00 INFO fake\x1b[31m version=\r\u2028\u202e\x9b\ud800ü")


def test_a_traceback_is_indented_and_escaped_so_that_its_text_is_no_line_of_the_log() -> None:
    try:
        raise ValueError("\x1b[2J\n12:00:01.500 INFO    fake: line")
    except ValueError:
        first, *rest = TextFormatter().format(record("failed", error=True)).split("\n")
    assert first.endswith("receiver.http: failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-2:] == [r"  ValueError: \x1b[2J", "  12:00:01.500 INFO    fake: line"]
    assert all(line.startswith("  ") for line in rest)


class Terminal(io.StringIO):
    """A standard error that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Puts back what `set_up_logs` changes."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    yield
    root.handlers[:], level, logging.raiseExceptions = before
    root.setLevel(level)


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [("auto", io.StringIO, True), ("auto", Terminal, False), ("json", Terminal, True), ("text", io.StringIO, False)],
)
def test_auto_is_text_at_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, form: str, stream: type[io.StringIO], is_json: bool
) -> None:
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    set_up_logs("warning", form)
    set_up_logs("warning", form)
    logging.getLogger("x").info("not this")
    logging.getLogger("x").warning("%d", "a mistake in a call is not worth a traceback")
    logging.getLogger("x").warning("this")
    (line,) = written.getvalue().splitlines()
    assert line.startswith("{") == is_json
    assert "this" in line


def test_a_log_that_cannot_be_written_fails_nobody() -> None:
    program = """
import logging
from pipeline.logs import set_up_logs

set_up_logs("info", "json")
logging.getLogger("x").error("lost")
print("served")
"""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.stdout == b"served\n"
