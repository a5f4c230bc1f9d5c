"""What dead letters look like: a table for people, and JSON for programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline.data import Batch, EventBatch
from pipeline.dead_letters import DeadLetter

_decode = msgspec.msgpack.Decoder().decode


class Kept(NamedTuple):
    """A dead letter, and the pipeline in whose journal it is."""

    pipeline: str
    letter: DeadLetter

    @property
    def id(self) -> str:
        """What the commands call it."""
        return f"{self.pipeline}:{self.letter.id}"

    @property
    def exporter(self) -> str:
        """Its id in the configuration: the journal knows it as `kind.id`."""
        return self.letter.exporter.partition(".")[2]


def described(each: Kept) -> dict[str, Any]:
    """All that is known of it but what it holds, for JSON."""
    letter = each.letter
    return {
        "id": each.id,
        "pipeline": each.pipeline,
        "exporter": each.exporter,
        "position": letter.position,
        "at": letter.at.isoformat(),
        "items": letter.items,
        "bytes": letter.size,
        "replay": letter.replay,
        "reason": letter.reason,
    }


def plain(batch: Batch) -> dict[str, Any]:
    """A batch as JSON has it: events by the names of their fields, metrics as OTLP."""
    fields = msgspec.structs.asdict(batch)
    if isinstance(batch, EventBatch):
        fields["events"] = [{**msgspec.structs.asdict(event), "metadata": event.metadata} for event in batch.events]
    else:
        with suppress(DecodeError):  # if it is not readable, it shows as Base64
            fields["request"] = MessageToDict(ExportMetricsServiceRequest.FromString(batch.request))
    plain: dict[str, Any] = msgspec.to_builtins(fields)
    return plain


def as_found(payload: bytes) -> Any:
    """MessagePack that is not a batch, as JSON values. Raises `ValueError` if it cannot be decoded."""
    try:
        return msgspec.to_builtins(_decode(payload), str_keys=True, enc_hook=repr)
    except (msgspec.MsgspecError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def table(letters: Sequence[Kept]) -> Iterator[str]:
    """A line each, not longer than the terminal if there is one."""
    rows = [("ID", "EXPORTER", "ITEMS", "WHEN", "BYTES", "REPLAY", "REASON")]
    for each in letters:
        letter = each.letter
        when, marked = letter.at.strftime("%Y-%m-%d %H:%M:%SZ"), "marked" if letter.replay else ""
        rows.append(
            (each.id, each.exporter, str(letter.items), when, str(letter.size), marked, _on_one_line(letter.reason))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def _on_one_line(text: str) -> str:
    """The text with whatever does not print escaped: it may come from the other side, and goes to a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
