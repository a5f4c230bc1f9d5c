"""Appends everything that passes to a file: a line of JSON for each event, and for each request of OTLP metrics.

At least once: what counts as taken is on the disk, and what was being written in a crash may be written again. The file
only grows; nothing here rotates it. The smallest YAML that works:

    exporters:
      jsonl:
        path: ./events.jsonl
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from pipeline import (
    Batch,
    ComponentConfig,
    Declaration,
    Delivery,
    Event,
    EventBatch,
    Exporter,
    Host,
    MetricBatch,
    Permanent,
    Retryable,
    Signal,
    hookimpl,
)

METRICS_SERVICE_API = 1
"""The version of the plugin API that this was made for."""


class JsonlConfig(ComponentConfig):
    """Where to write."""

    path: Path
    """The file. It is made if it is not there; its folder is not."""


class JsonlExporter(Exporter[JsonlConfig]):
    """Appends events and metrics to a file as lines of JSON, at least once."""

    def __init__(self, id: str, config: JsonlConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._writing = threading.Lock()  # two pipelines may deliver at the same time

    async def export(self, delivery: Delivery) -> None:
        """Write, and return when it is on the disk.

        Raises `Retryable` if the disk is full, for example; then none of it is left in the file. Raises `Permanent` for
        what JSON cannot say.
        """
        try:
            # Neither the disk nor so much JSON is to hold up everybody else on the event loop.
            await asyncio.to_thread(self._write, delivery.batches)
        except OSError as error:
            raise Retryable(f"cannot write {str(self.config.path)!r}: {error.strerror or error}") from error
        except (TypeError, ValueError) as error:
            raise Permanent(f"no JSON: {error}") from error

    def _write(self, batches: Sequence[Batch]) -> None:
        data = "".join(f"{line}\n" for batch in batches for line in lines_of(batch)).encode()
        path = self.config.path
        with self._writing, path.open("ab+", buffering=0) as file:
            end = file.tell()
            if end == 0:
                _sync_folder(path.parent)
            try:
                # A crash may have left half a line. What follows is not to be a part of it.
                rest = memoryview(b"\n" + data if _is_torn(file.fileno(), end) else data)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise


def _is_torn(file: int, end: int) -> bool:
    return end > 0 and os.pread(file, 1, end - 1) != b"\n"


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file as durable as what is in it."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def lines_of(batch: Batch) -> Iterator[str]:
    """A line for each event, or one for the whole request of OTLP metrics, in OTLP's JSON. Without line feeds.

    Raises `TypeError` or `ValueError` for what JSON cannot say.
    """
    if isinstance(batch, EventBatch):
        for event in batch.events:
            yield _line(_said(batch, event))
    else:
        yield _line(_request(batch))


def _line(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _said(batch: EventBatch, event: Event) -> dict[str, object]:
    return {
        "timestamp": event.timestamp.isoformat(),
        "service": batch.service,
        "type": event.type,
        "value": event.value,
        "duration_ms": event.duration_ms,
        "dimensions": event.dimensions,
        "metadata": event.metadata,
        "version": batch.version,
        "instance_id": batch.instance_id,
        "key_service": batch.key_service,
        "request_id": batch.request_id,
        "received_at": batch.received_at.isoformat(),
    }


def _request(batch: MetricBatch) -> dict[str, object]:
    try:
        request = ExportMetricsServiceRequest.FromString(batch.request)
    except DecodeError as error:
        raise ValueError(f"{batch.request_id} is no OTLP request: {error}") from error
    said: dict[str, object] = MessageToDict(request, use_integers_for_enums=True)
    return said


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `jsonl`, for both signals."""
    return [Declaration("jsonl", JsonlExporter, JsonlConfig, takes=frozenset(Signal))]
