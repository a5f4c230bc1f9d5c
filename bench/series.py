"""What one event costs in `series`: the shipped table, as deliveries of single pushes and of pushes of 100 bring them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import anyio

from bench.samples import metric
from pipeline import Delivery, Event, EventBatch, Kind
from pipeline.config.load import load_configuration
from pipeline.registry import load_registry
from pipeline.testing import NopHost
from plugins.connectors.series.config import SeriesConfig
from plugins.connectors.series.connector import SeriesConnector
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension

EVENTS = 2000


async def microseconds_an_event(size: int, rounds: int = 20) -> float:
    """The best of some rounds; `size` is in events a push, 32 pushes a delivery."""
    configuration = load_configuration(["production"], [], {}, load_registry())
    config = configuration.components[Kind.CONNECTOR, "series"].config
    assert isinstance(config, SeriesConfig)
    host = NopHost()
    host.extensions.append(DatabaseExtension("database", DatabaseConfig(path=Path("unused")), host))
    series = SeriesConnector("series", config, host)
    deliveries = list(_deliveries(size, rounds))
    a_round = len(deliveries) // rounds
    best = float("inf")
    for first in range(0, len(deliveries), a_round):
        started = time.perf_counter()
        for delivery in deliveries[first : first + a_round]:
            await series.export(delivery)
        items = sum(delivery.items for delivery in deliveries[first : first + a_round])
        best = min(best, (time.perf_counter() - started) / items * 1e6)
    return best


def _deliveries(size: int, rounds: int) -> list[Delivery]:
    now, position, made = datetime.now(UTC), 0, []
    metrics = [metric(number) for number in range(EVENTS)]
    events = [Event(each["type"], each["value"], now, each["duration_ms"], each["dimensions"]) for each in metrics]
    batches = [EventBatch("bench", events[first : first + size], now) for first in range(0, EVENTS, size)]
    for _ in range(rounds):
        for first in range(0, len(batches), 32):
            some = batches[first : first + 32]
            made.append(Delivery("events", position, position + len(some), some))
            position += len(some)
    return made


def main() -> None:
    """Print a line a size."""
    for size in (1, 100):
        cost = anyio.run(microseconds_an_event, size)
        print(f"series     one event of a push of {size:<4} {cost:5.2f} µs", flush=True)
