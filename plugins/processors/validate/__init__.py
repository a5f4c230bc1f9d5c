"""Decodes what was pushed, keeps the good and notes the bad.

A good request is decoded in one typed pass. Only one with a fault in it is taken apart field by field, to name every fault
and keep the rest. What passes here can be stored and shown by everything behind it. The smallest YAML that works:

    processors:
      validate:
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import msgspec
from pydantic import Field

from pipeline import (
    ComponentConfig,
    Context,
    Declaration,
    Decoder,
    Event,
    EventBatch,
    Host,
    Invalid,
    Malformed,
    Signal,
    TooLarge,
    hookimpl,
)
from plugins.processors.validate.document import Document, PushedMetric, check_document
from plugins.processors.validate.metric import Faults, check_metric, to_event
from plugins.processors.validate.warnings import Warnings

SHIPPED_TYPES = (
    "auth_request",
    "tool_discovery",
    "tool_execution",
    "registry_operation",
    "health_check",
    "protocol_latency",
    "custom",
)
FUTURE = timedelta(minutes=5)
"""How far ahead of our clock a timestamp may be (api.md)."""


class ValidateConfig(ComponentConfig):
    """What may be pushed."""

    types: tuple[str, ...] = SHIPPED_TYPES
    """The metric types that are accepted."""
    max_metrics: int = Field(10_000, ge=1)
    """How many metrics one request may hold."""


class ValidateProcessor(Decoder[ValidateConfig]):
    """Decodes what was pushed, keeps the good and notes the bad."""

    def __init__(self, id: str, config: ValidateConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._types = frozenset(config.types)
        self._decode = msgspec.json.Decoder(Document).decode
        self._warnings = Warnings(self.log)

    async def decode(self, document: bytes, context: Context) -> EventBatch:
        """See `Decoder.decode`."""
        try:
            pushed = self._decode(document)
        except msgspec.ValidationError:
            return self._take_apart(document, context)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Malformed("Request body is not valid JSON") from None
        except RecursionError:
            raise Malformed("Request body is too deeply nested") from None
        if check_document(pushed):
            return self._take_apart(document, context)
        self._check_count(len(pushed.metrics))
        return self._keep_good(pushed, enumerate(pushed.metrics), len(pushed.metrics), context)

    def _take_apart(self, document: bytes, context: Context) -> EventBatch:
        """Something in it is wrong: find out what, and keep the metrics that are good."""
        try:
            plain = msgspec.json.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Malformed("Request body is not valid JSON") from None
        except RecursionError:
            raise Malformed("Request body is too deeply nested") from None
        details = check_document(plain)
        if details:
            raise Invalid("Request body is not valid", details)
        metrics = plain["metrics"]
        self._check_count(len(metrics))
        readable = []
        for index, metric in enumerate(metrics):
            checked = check_metric(metric)
            if isinstance(checked, PushedMetric):
                readable.append((index, checked))
            else:
                context.reject(f"metrics[{index}]{fault}" for fault in checked)
        pushed = Document(plain["service"], [], plain.get("version"), plain.get("instance_id"))
        return self._keep_good(pushed, readable, len(metrics), context)

    def _keep_good(
        self,
        pushed: Document,
        metrics: Sequence[tuple[int, PushedMetric]] | enumerate[PushedMetric],
        count: int,
        context: Context,
    ) -> EventBatch:
        events: list[Event] = []
        latest = context.received_at + FUTURE
        for index, metric in metrics:
            event = to_event(metric, self._types, context.received_at, latest)
            if isinstance(event, Event):
                events.append(event)
            else:
                faults: Faults = event
                context.reject(f"metrics[{index}]{fault}" for fault in faults)
        context.received = count
        if not events:
            raise Invalid("No metric could be accepted")
        self._warnings.look_at(pushed, events, context)
        return EventBatch(
            pushed.service,
            events,
            context.received_at,
            context.request_id,
            pushed.version,
            pushed.instance_id,
            context.caller.service if context.caller else None,
        )

    def _check_count(self, count: int) -> None:
        if count > self.config.max_metrics:
            raise TooLarge(f"{count:,} metrics, limit {self.config.max_metrics:,}")


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `validate`."""
    return [Declaration("validate", ValidateProcessor, ValidateConfig, takes=frozenset({Signal.EVENTS}))]
