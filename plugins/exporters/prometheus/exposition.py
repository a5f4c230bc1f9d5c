"""A whole scrape in either format: the data, then the service's own telemetry."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest as text_of
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_of

from plugins.exporters.prometheus.family import Family, claims
from plugins.exporters.prometheus.store import Store

SERIES_AT_A_TIME = 100
"""About a millisecond of writing histograms, so that nobody who pushes waits for more."""
PIECE_BYTES = 256 * 1024


class Format(Enum):
    """The formats, by their content types."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


async def write(store: Store, own: CollectorRegistry, format: Format) -> list[bytes]:
    """What the store holds and what the service says of itself, in pieces. Lets others run about every millisecond."""
    openmetrics = format is Format.OPENMETRICS
    of_its_own: bytes = openmetrics_of(own) if openmetrics else text_of(own)  # type: ignore[no-untyped-call]
    _hide(store, of_its_own)
    for _ in range(0, store.changed, SERIES_AT_A_TIME):
        store.render(SERIES_AT_A_TIME)
        await asyncio.sleep(0)
    pieces = []
    shown = [family for family in store.families.values() if not family.hidden]
    for piece in _pieces(shown, openmetrics=openmetrics):
        pieces.append(piece)
        await asyncio.sleep(0)
    return [*pieces, of_its_own]  # which has the end mark of OpenMetrics


def _hide(store: Store, of_its_own: bytes) -> None:
    """Leave out what has a name of the service's own telemetry, which may have come later than the data."""
    taken: set[str] = set()
    for line in of_its_own.decode().split("\n"):
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            taken |= claims(name.removesuffix("_total") if kind == "counter" else name, kind)
    for family in store.families.values():
        if not family.hidden and not family.claims.isdisjoint(taken):
            store.hide(family)


def _pieces(families: Iterable[Family], *, openmetrics: bool) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for family in families:
        held.append(family.openmetrics_header if openmetrics else family.header)
        for series in list(family.series.values()):  # more may come while this waits
            held.append(series.lines)
            size += len(series.lines)
            if size >= PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
    yield b"".join(held)


def pack(pieces: Sequence[bytes]) -> list[bytes]:
    """The same with gzip. Runs in a thread: zlib gives the GIL up."""
    packer = zlib.compressobj(level=1, wbits=31)
    return [*map(packer.compress, pieces), packer.flush()]
