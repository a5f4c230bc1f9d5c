"""Limits the log lines of requests to a rate, so that many requests do not fill the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

TURNED_AWAY = frozenset({401, 403, 429})
"""Statuses whose log lines have the client's address, which shows who guesses keys."""


class RequestLog:
    """Writes at most `rate` lines a second; pushes and pages share them."""

    def __init__(self, log: logging.Logger, rate: int) -> None:
        self._log = log
        self._rate = rate
        self._second = 0
        self._lines = 0

    def is_due(self, now: float) -> bool:
        """Whether a request that began at `now`, in seconds, gets a line. Counts it."""
        second = int(now)
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= self._rate and self._log.isEnabledFor(logging.INFO)

    def write(self, message: str, fields: Mapping[str, Any]) -> None:
        """Write one line with these fields."""
        self._log.info(message, extra=dict(fields))
