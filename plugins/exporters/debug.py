"""Prints what passes, for people, to standard output.

The smallest YAML that works:

    exporters:
      debug:
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from pipeline import (
    Batch,
    ComponentConfig,
    Declaration,
    Delivery,
    EventBatch,
    Exporter,
    Signal,
    hookimpl,
)


class DebugConfig(ComponentConfig):
    """How much to print."""

    verbosity: Literal["basic", "detailed"] = "detailed"
    """`basic`: a line a batch; `detailed`: a line an item too."""


class DebugExporter(Exporter[DebugConfig]):
    """Prints what passes, for people."""

    at_once = True

    async def export(self, delivery: Delivery) -> None:
        """Print the delivery."""
        for batch in delivery.batches:
            sys.stdout.write(f"{delivery.pipeline}: {self._describe(batch)}\n")
        sys.stdout.flush()

    def _describe(self, batch: Batch) -> str:
        if not isinstance(batch, EventBatch):
            return f"{len(batch)} data points"
        lines = [f"{len(batch)} events of {batch.service} ({batch.request_id})"]
        if self.config.verbosity == "detailed":
            lines += [
                f"  {event.timestamp.isoformat()} {event.type} {event.value} {event.dimensions}"
                for event in batch.events
            ]
        return "\n".join(lines)


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `debug`."""
    return [Declaration("debug", DebugExporter, DebugConfig, takes=frozenset(Signal))]
