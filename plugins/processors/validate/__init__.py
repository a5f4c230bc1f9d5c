"""Decodes what was pushed, keeps the good and notes the bad.

A request of the right shape is decoded in one typed pass. Only one that is not is taken apart field by field, to name every
fault and keep the rest. What passes here can be stored and shown by everything behind it. The smallest YAML that works:

    processors:
      validate:
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence, Set
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
from plugins.processors.validate.characters import (
    REPLACEMENT,
    Repaired,
    check_utf8,
    damaged_values,
    may_hold_nul,
    repaired,
)
from plugins.processors.validate.document import Document, outline
from plugins.processors.validate.metric import Faults, Rules, check_metric, to_event
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
VALUES = 640_000
VALUES_A_METRIC = 64
"""So many values may a document hold, or so many for each metric that it may hold, which is more if these are more than 10,000. A metric
with nothing nested in its metadata has at most 59. A value that takes two bytes here takes up to 200 in memory."""
REPLACED = "invalid characters were replaced by U+FFFD"
FUTURE = timedelta(minutes=5)
"""How far ahead of our clock a timestamp may be (docs/api.md)."""


class ValidateConfig(ComponentConfig):
    """What may be pushed."""

    types: tuple[str, ...] = Field(SHIPPED_TYPES, min_length=1)
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
            return await self._read_or_repair(document, context)
        except msgspec.DecodeError as error:
            reason = str(error).removeprefix("JSON is malformed: ") if document else "it is empty"
            raise Malformed(f"Request body is not valid JSON: {reason}") from None
        except RecursionError:
            raise Malformed("Request body is too deeply nested") from None

    async def _read_or_repair(self, document: bytes, context: Context) -> EventBatch:
        """Only a document that does not decode as it is, or may hold NUL, is searched for characters that text cannot hold."""
        try:
            context.is_ascii = b"\\u" not in document and document.isascii()
            if not context.is_ascii:
                check_utf8(document)
            if context.is_ascii or not may_hold_nul(document):
                return self._read(document, context)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        repair = await repaired(document)
        if repair is None:
            return self._read(document, context)  # which raises once more what is wrong with it
        return self._read(repair.document, context, repair)

    def _read(self, document: bytes, context: Context, repair: Repaired | None = None) -> EventBatch:
        gc.disable()  # it would walk a hundred thousand lists again and again while they are made, for ten times as long as that takes
        try:
            return self._decode_and_check(document, context, repair)
        finally:
            gc.enable()

    def _decode_and_check(self, document: bytes, context: Context, repair: Repaired | None) -> EventBatch:
        rules = Rules(self._types, context.received_at, context.received_at + FUTURE)
        limit = self.config.max_metrics
        values = max(VALUES, VALUES_A_METRIC * limit)
        if len(document) > values and sum(map(document.count, (b",", b"[", b"{"))) > values:
            raise TooLarge(f"more than {values:,} values")
        if document.count(b"{") > limit + 1:
            outline(document, limit)  # there may be too many, which is found out before they cost memory
        try:
            pushed = self._decode(document)
        except msgspec.ValidationError:
            outlined = outline(document, limit)
            if isinstance(outlined, list):
                raise Invalid("Request body is not valid", outlined) from None
            pushed, metrics = outlined
            return self._keep_good(pushed, (check_metric(metric, rules) for metric in metrics), context, repair)
        return self._keep_good(pushed, (to_event(metric, rules) for metric in pushed.metrics), context, repair)

    def _keep_good(
        self, pushed: Document, checked: Iterable[Event | Faults], context: Context, repair: Repaired | None
    ) -> EventBatch:
        events: list[Event] = []
        refused: set[int] = set()
        for index, event in enumerate(checked):
            if isinstance(event, Event):
                events.append(event)
            else:
                context.reject(f"metrics[{index}]{fault}" for fault in event)
                refused.add(index)
        context.received = len(events) + context.rejected
        if not events:
            raise Invalid("No metric could be accepted")
        self._warnings.look_at(pushed, events, context)
        if repair is not None:
            context.warn(f"{path}: {REPLACED}" for path in self._damaged(repair, refused))
        return EventBatch(
            pushed.service,
            events,
            context.received_at,
            context.request_id,
            pushed.version,
            pushed.instance_id,
            context.caller.service if context.caller else None,
        )

    def _damaged(self, repair: Repaired, refused: Set[int]) -> Iterator[str]:
        """The paths of the values that were changed, in what is stored."""
        outlined = outline(repair.marked, self.config.max_metrics)
        if isinstance(outlined, list):
            return
        pushed, metrics = outlined
        if pushed.version is not None and REPLACEMENT in pushed.version:
            yield "version"
        for index, metric in enumerate(metrics):
            if index not in refused:
                yield from (f"metrics[{index}]{path}" for path in damaged_values(metric, repair.stand_in))


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `validate`."""
    return [Declaration("validate", ValidateProcessor, ValidateConfig, takes=frozenset({Signal.EVENTS}))]
