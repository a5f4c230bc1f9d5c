"""The body of a request: what is due, concatenated on the wire, and what the collector says of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from pipeline import MetricBatch

FASTEST = 1
"""zlib's level: half the time of its default for a tenth more bytes."""


def concatenated(batches: Iterable[MetricBatch]) -> bytes:
    """One request of many: a protobuf message with the fields of all is what they are, written one behind the other
    (Protocol Buffers, "Encoding", section "Last One Wins")."""
    return b"".join(batch.request for batch in batches)


def gzipped(body: bytes) -> bytes:
    """The body as gzip. Lets go of the GIL, so it may run in a thread."""
    compressor = zlib.compressobj(FASTEST, wbits=31)
    return compressor.compress(body) + compressor.flush()


def read_response(body: bytes) -> tuple[int, str]:
    """How many points were rejected, and why. Raises `DecodeError` for a body that is no answer to a request."""
    partial = ExportMetricsServiceResponse.FromString(body).partial_success
    return partial.rejected_data_points, partial.error_message


def read_error(body: bytes, content_type: str) -> str:
    """The words of a failure's body: a `google.rpc.Status` for OTLP, text for whoever stands before the collector."""
    if content_type.partition(";")[0].strip().lower() == "application/x-protobuf":
        try:
            return str(Status.FromString(body).message)
        except DecodeError:
            return ""
    return body.decode("utf-8", "replace")
