"""What the exporter needs of a protocol: to send a request, and to say what came of it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from plugins.exporters.otlp.answers import Answer


class Result(NamedTuple):
    """What came of a request: the answer, and of one that was taken, how many points the collector rejected, with its words.
    `readable` is false for a success whose body is no answer of OTLP's."""

    answer: Answer
    rejected: int = 0
    message: str = ""
    readable: bool = True


class Transport(Protocol):
    """A session with one collector. `stop` is safe twice and without `start`."""

    async def start(self) -> None:
        """Read what is needed to connect. Raises `StartError`."""

    async def stop(self) -> None:
        """Close all connections."""

    async def send(self, body: bytes) -> Result:
        """Send one `ExportMetricsServiceRequest`, and say what came of it, whatever that is."""
