"""Logs: one JSON object a line for machines, readable text for a person at a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from pipeline.masking import MASKER, mask

MOST_TRACEBACK = 32_768
"""Characters of one traceback that are written."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_PREFIX = "mcp_metrics_"
_KEY = re.compile(rf"{_PREFIX}[A-Za-z0-9_-]+")
"""A key that we made, whole or cut, wherever a client has put it: in its request's id, for example, or where a type should be."""


class JsonFormatter(logging.Formatter):
    """The fields of the deployment guide: timestamp, level, logger, message, then whatever `extra` brought under other names."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON, in ASCII."""
        line: dict[str, Any] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            line["exception"] = _cut(mask(self.formatException(record.exc_info)))
        # The standard library's encoder loses no line to half a character, which a file's name may hold.
        return _masked(json.dumps({**line, **_extra(record), **line}, default=str, skipkeys=True))


class TextFormatter(logging.Formatter):
    """Time, level, who, what, and `name=value` for whatever `extra` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback indented under it if there is one.

        Control characters are escaped, since clients choose some of the text; the indent keeps what they choose from
        looking like a line of the log.
        """
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        lines = [f"{_timestamp(record)[11:23]} {record.levelname:7} {record.name}: {record.getMessage()}{extra}"]
        if record.exc_info:
            lines += _cut(mask(self.formatException(record.exc_info))).split("\n")
        return _masked("\n  ".join(map(_printable, lines)))


def set_up_logs(level: str, form: str) -> None:
    """Log to standard error. `form` is `json`, `text`, or `auto`: text at a terminal, JSON elsewhere."""
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if form == "text" else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A log line that cannot be written must not fail a request.
    logging.raiseExceptions = False
    for chatty in ("asyncio", "aiosqlite", "hypercorn", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _cut(text: str) -> str:
    """The beginning and the end of a traceback: an exception of a plugin may hold a whole batch."""
    half = MOST_TRACEBACK // 2
    return (
        text if len(text) <= MOST_TRACEBACK else f"{text[:half]}\n[{len(text) - 2 * half} characters]\n{text[-half:]}"
    )


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _message(record: logging.LogRecord) -> str:
    """Masked before it is escaped: a secret in a quoted answer is found in the form in which the answer has it."""
    return MASKER.mask_line(record.getMessage()) if record.args else record.getMessage()


def _masked(line: str) -> str:
    line = MASKER.mask_line(line)
    return _KEY.sub(f"{_PREFIX}***", line) if _PREFIX in line else line


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
