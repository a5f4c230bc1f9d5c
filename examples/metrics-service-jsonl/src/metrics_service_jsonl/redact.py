"""Replaces what must not be stored, in the dimensions and metadata of events, before anything is made durable.

The smallest YAML that works:

    processors:
      redact:
        keys: [password]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import Batch, ComponentConfig, Context, Declaration, Event, EventBatch, Host, Processor, Signal, hookimpl

REDACTED = "[redacted]"

METRICS_SERVICE_API = 1
"""The version of the plugin API that this was made for."""


class RedactConfig(ComponentConfig):
    """What to replace."""

    keys: tuple[str, ...] = ()
    """The names whose values are replaced, in any case, at any depth of the metadata."""
    patterns: tuple[re.Pattern[str], ...] = ()
    """Regular expressions. A text or a number in which one is found is replaced. They run while the client waits."""


class Redact(Processor[RedactConfig]):
    """Replaces values in the dimensions and metadata of events by `[redacted]`."""

    def __init__(self, id: str, config: RedactConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._keys = frozenset(key.casefold() for key in config.keys)

    async def process(self, batch: Batch, context: Context) -> Batch:
        """A batch without what must not be stored. Batches and events are immutable: `replace` gives a changed copy."""
        assert isinstance(batch, EventBatch), "it takes nothing else, as it declares below"
        return batch.replace(events=[self._redacted(event) for event in batch.events])

    def _redacted(self, event: Event) -> Event:
        return event.replace(dimensions=self._values(event.dimensions), metadata=self._values(event.metadata))

    def _values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: REDACTED if key.casefold() in self._keys else self._value(value) for key, value in values.items()}

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._values(value)
        if isinstance(value, list):
            return [self._value(each) for each in value]
        if value is None or isinstance(value, bool):
            return value
        return REDACTED if any(pattern.search(str(value)) for pattern in self.config.patterns) else value


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `redact`, for events."""
    return [Declaration("redact", Redact, RedactConfig, takes=frozenset({Signal.EVENTS}))]
