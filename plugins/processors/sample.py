"""Keeps a share of the events, and the same ones whenever it is asked again.

It is named behind `validate` among the processors of a pipeline. The smallest YAML that works:

    processors:
      sample:
        percentage: 10

Everything behind it sees fewer events. Nothing is scaled up again: counters and rates are lower by the share, and so are the
sums of the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
from pydantic import Field

from pipeline import (
    Batch,
    ComponentConfig,
    Context,
    Declaration,
    DimensionValue,
    Event,
    EventBatch,
    Host,
    Processor,
    Signal,
    hookimpl,
)

_HASH_BYTES = 8
_HASHES = 2 ** (8 * _HASH_BYTES)

_encode = msgspec.json.Encoder().encode


class SampleConfig(ComponentConfig):
    """How many events to keep, and which."""

    percentage: float = Field(gt=0, le=100, allow_inf_nan=False)
    """How many of a hundred are kept. What is kept at one percentage is kept at every higher one."""
    by: str | None = Field(None, min_length=1)
    """A dimension: all events with the same value of it are kept, or none. Without it, and for events that do not have that
    dimension, each event is decided by itself."""
    types: tuple[str, ...] | None = Field(None, min_length=1)
    """Only events of these types are sampled, all others kept; by default all are sampled."""
    seed: int = 0
    """Two processors with one seed choose alike; another seed chooses others."""


class Sample(Processor[SampleConfig]):
    """Keeps a share of the events, chosen by a stable hash."""

    def __init__(self, id: str, config: SampleConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._below = int(config.percentage / 100 * _HASHES)
        self._by = config.by
        self._types = None if config.types is None else frozenset(config.types)
        self._hash = blake2b(b"%d\0" % config.seed, digest_size=_HASH_BYTES)

    async def process(self, batch: Batch, context: Context) -> Batch:
        """See `Processor.process`."""
        assert isinstance(batch, EventBatch), "takes events only"
        # A connector that hands a batch over again does so in another request.
        request_id = batch.request_id or context.request_id
        events = [event for index, event in enumerate(batch.events) if self._keeps(event, request_id, index)]
        return batch if len(events) == len(batch) else batch.replace(events=events)

    def _keeps(self, event: Event, request_id: str, index: int) -> bool:
        if self._types is not None and event.type not in self._types:
            return True
        value: DimensionValue = None if self._by is None else event.dimensions.get(self._by)
        decided_by = _encode((request_id, index) if value is None else value)
        hashed = self._hash.copy()
        hashed.update(decided_by)
        return int.from_bytes(hashed.digest()) < self._below


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `sample`."""
    return [Declaration("sample", Sample, SampleConfig, takes=frozenset({Signal.EVENTS}))]
