"""Hands what the service says of itself to a pipeline, as the Collector's internal telemetry: for those who have an OTLP collector
and no Prometheus.

    receivers:
      internal_telemetry:
        interval: 60s

It listens to nobody. What it hands over is durable like everything else, and what becomes of it never decides whether the service
is healthy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from pydantic import Field

from pipeline import (
    ComponentConfig,
    Context,
    Declaration,
    Duration,
    Finding,
    Host,
    Item,
    Level,
    Receiver,
    Refusal,
    Signal,
    hookimpl,
)


class InternalTelemetryConfig(ComponentConfig):
    """How often."""

    interval: Duration = Field(60.0, gt=0)
    """How often what the service says of itself is handed over, in seconds."""


class InternalTelemetry(Receiver[InternalTelemetryConfig]):
    """Gives on what the service says of itself: what port 9465 shows behind the series."""

    takes_from_outside = False

    def __init__(self, id: str, config: InternalTelemetryConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._started = False
        self._failing = False

    def findings(self) -> Iterable[Finding]:
        """That somebody hears how the service is."""
        what = f"what the service says of itself is given on every {self.config.interval:g} s"
        yield Finding(Level.OK, Item.MONITORING, f"receivers.{self.id}", what)

    async def start(self) -> None:
        """Hand it over at every interval from now on."""
        self._started = True
        self.host.spawn(self, self._run)

    async def stop(self) -> None:
        """Hand over how it ends. The journal keeps that for the next start if its exporters do not come to it now."""
        if self._started:
            self._started = False
            await self._hand_over()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.config.interval)
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Everything is cumulative, so one that is refused costs resolution and no count: it is not tried again."""
        try:
            batch = self.host.telemetry_batch()
            await self.chain.process(batch, Context(batch.request_id, scope=None))
        except Exception as error:  # whatever a plugin raises, the next one may pass
            if not self._failing:
                expected = isinstance(error, Refusal)
                self.log.warning("left out until it works again: %s", error, exc_info=None if expected else error)
            self._failing = True
        else:
            if self._failing:
                self.log.info("works again")
            self._failing = False


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `internal_telemetry`."""
    config = InternalTelemetryConfig
    return [Declaration("internal_telemetry", InternalTelemetry, config, gives=frozenset({Signal.METRICS}))]
