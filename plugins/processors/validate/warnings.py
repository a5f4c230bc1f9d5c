"""Warnings about what is accepted and yet looks wrong, each once for a sender and a while, since senders repeat themselves."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache

from pipeline import Context, Event
from plugins.processors.validate.document import Document

OLD = timedelta(days=7)
REMEMBERED = 1024

_SEMANTIC_VERSION = re.compile(r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([-+][0-9A-Za-z.+-]+)?", re.ASCII)


class Warnings:
    """The warnings of docs/api.md: a version that is no semantic version, and events older than seven days."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._look_at_version = lru_cache(REMEMBERED)(self._version)
        self._say_old = lru_cache(REMEMBERED)(self._old)

    def look_at(self, pushed: Document, events: Sequence[Event], context: Context) -> None:
        """Warn, if there is something to warn of."""
        if pushed.version is not None:
            self._look_at_version(pushed.service, pushed.version)
        oldest = min(event.timestamp for event in events)
        if oldest < context.received_at - OLD:
            self._say_old(pushed.service, context.received_at.strftime("%Y-%m-%dT%H"))

    def _version(self, service: str, version: str) -> None:
        if not _SEMANTIC_VERSION.fullmatch(version):
            self._log.warning("version is not a semantic version", extra={"service": service, "version": version})

    def _old(self, service: str, hour: str) -> None:
        self._log.warning("events are older than 7 days", extra={"service": service, "hour": hour})
