"""The component: one request a delivery, at the collector's pace."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from pipeline import (
    Delivery,
    EventBatch,
    Exporter,
    Host,
    Instrument,
    InstrumentKind,
    MetricBatch,
    Oversized,
    Permanent,
    mask,
    warn_if_others_read,
)
from plugins.exporters.otlp.answers import Action, printable
from plugins.exporters.otlp.config import OtlpConfig
from plugins.exporters.otlp.events import EventRequest
from plugins.exporters.otlp.request import concatenated

if TYPE_CHECKING:
    from plugins.exporters.otlp.transport import Result, Transport

SAY_AGAIN = 3600.0
"""Seconds until the same words of a collector are logged again."""
MOST_WORDS = 100
"""How many of them are remembered for that."""


class OtlpExporter(Exporter[OtlpConfig]):
    """Forwards metrics, or events as delta points, to an OTLP collector, at least once."""

    def __init__(self, id: str, config: OtlpConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._transport: Transport | None = None
        self._answers: Counter[str] = Counter({action.value: 0 for action in Action})
        self._rejected = self._ambiguous = self._unreadable = self._negative = 0
        self._said: dict[str, float] = {}

    @property
    def most_items(self) -> int:
        """See `Exporter.most_items`."""
        return self.config.max_items

    async def start(self) -> None:
        """Read the certificates; nothing is connected before there is something to send. Raises `StartError`."""
        self._transport = self._make_transport()
        await self._transport.start()
        if self.config.tls.key is not None:
            warn_if_others_read(self.config.tls.key, self.log)

    def _make_transport(self) -> Transport:
        user_agent = f"mcp-metrics-service/{version('mcp-metrics-service')}"
        if self.config.protocol == "grpc":
            # It would write to standard error, past our log, what we get as its answer anyhow; read when it is imported.
            os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
            # Importing it takes time and memory that only those who use it should pay for.
            from plugins.exporters.otlp.over_grpc import GrpcTransport

            return GrpcTransport(self.config, user_agent, self.host.environ)
        from plugins.exporters.otlp.over_http import HttpTransport

        return HttpTransport(self.config, user_agent, self.host.environ)

    async def stop(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.stop()

    async def export(self, delivery: Delivery) -> None:
        """Send the delivery as one request. What each answer leads to is the table in `answers`."""
        body, negative = await self._body(delivery)
        if not body:
            return
        if len(body) > self.config.max_request_size:
            raise Oversized(f"{len(body)} bytes are more than max_request_size, {self.config.max_request_size}")
        assert self._transport is not None, "started before it is used"
        result = await self._transport.send(body)
        self._answers[result.answer.action] += 1
        self._ambiguous += result.answer.ambiguous
        error = result.answer.error(hold_credentials=self.config.on_auth_error == "hold", bisect=self.config.bisect)
        if error is not None:
            raise error
        self._negative += negative
        self._note(result)

    async def _body(self, delivery: Delivery) -> tuple[bytes, int]:
        """The request, and how many events have no part in it. Raises `Permanent` for an event that OTLP has no words for."""
        body, negative = concatenated(batch for batch in delivery.batches if isinstance(batch, MetricBatch)), 0
        if events := [batch for batch in delivery.batches if isinstance(batch, EventBatch)]:
            request = EventRequest(self.host.service_name)
            try:
                await request.add(events)
            except (ValueError, TypeError) as error:
                raise Permanent(f"cannot be written as OTLP: {error}") from error
            body += request.body()
            negative = request.negative
        return body, negative

    def _note(self, result: Result) -> None:
        """What a collector says beside taking a request."""
        if not result.readable:
            self._unreadable += 1
            self._say("it answers success with a body that is not OTLP's: is this a collector?")
        self._rejected += max(result.rejected, 0)
        if result.rejected or result.message:
            words = printable(mask(result.message)) or "no reason given"
            self._say(
                f"it rejected points ({result.rejected} now): {words}" if result.rejected else f"it says: {words}",
                words,
            )

    def _say(self, line: str, words: str | None = None) -> None:
        """Log once in a while for the same words."""
        now, words = time.monotonic(), words or line
        if now - self._said.get(words, -SAY_AGAIN) >= SAY_AGAIN:
            if len(self._said) >= MOST_WORDS:
                self._said.clear()
            self._said[words] = now
            self.log.warning("%s", line)

    def instruments(self) -> Sequence[Instrument]:
        """See `Component.instruments`."""

        def one(name: str, description: str, value: str) -> Instrument:
            return Instrument(
                name,
                InstrumentKind.COUNTER,
                description,
                ("exporter",),
                lambda: [({"exporter": self.id}, getattr(self, value))],
            )

        return [
            Instrument(
                "otlp_requests_total",
                InstrumentKind.COUNTER,
                "Requests that came to an end, by what we did about it.",
                ("exporter", "action"),
                lambda: [({"exporter": self.id, "action": action}, count) for action, count in self._answers.items()],
            ),
            one(
                "otlp_rejected_items_total", "Points that the collector rejected of requests that it took.", "_rejected"
            ),
            one(
                "otlp_ambiguous_requests_total",
                "Failed requests that the collector may have taken: possible duplicates.",
                "_ambiguous",
            ),
            one("otlp_bad_replies_total", "Requests that were taken with an answer that is not OTLP's.", "_unreadable"),
            one("otlp_negative_events_total", "Events whose negative value is no part of a delta sum.", "_negative"),
        ]
