"""What a scrape takes when there are many series, and what a scrape every second does to pushes.

Each series here is one of OTLP: a counter, or a histogram, which Prometheus shows as 15 lines.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.load import Load, push
from bench.samples import metric
from tests.running import free_port, process

KEY = "bench-key-that-is-long-enough-for-no-warning"
CONNECTIONS = 32
SERVERS_A_LABEL = 140
"""Below the limit of 150 distinct values a label."""


@dataclass(frozen=True)
class Scrape:
    """Seconds that it took, bytes that came, and how many lines they hold."""

    seconds: float
    size: int
    lines: int


def bodies(series: int) -> list[bytes]:
    """Pushes of one event, each of which changes a counter and a histogram of its own."""
    made = []
    for number in range(series // 2):
        each = metric(number)
        names = {"server_name": f"server-{number % SERVERS_A_LABEL}", "tool_name": f"tool-{number // SERVERS_A_LABEL}"}
        each["dimensions"] = {**each["dimensions"], **names, "success": True}
        made.append(json.dumps({"service": "bench", "version": "1.0.0", "metrics": [each]}).encode())
    return made


def scrape(client: httpx.Client, url: str, *, gzip: bool = False) -> Scrape:
    """Scrape once, on a connection that is kept; what it reads it throws away."""
    headers = {"Accept-Encoding": "gzip" if gzip else "identity"}
    started = time.perf_counter()
    size = lines = 0
    with client.stream("GET", url, headers=headers) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_raw():
            size += len(chunk)
            lines += chunk.count(b"\n")
    return Scrape(time.perf_counter() - started, size, lines)


@contextmanager
def _scraping(url: str, scrapes: list[Scrape]) -> Iterator[None]:
    """Scrape every second, in the background."""
    ended = threading.Event()

    def keep_scraping() -> None:
        with httpx.Client(timeout=60) as client:
            while True:
                scrapes.append(scrape(client, url))
                if ended.wait(1):
                    return

    thread = threading.Thread(target=keep_scraping)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure(server: str, prefixes: tuple[list[str], list[str]], series: int, seconds: int, rounds: int) -> None:
    """Print one line. Rounds without scrapes and with one every second alternate."""
    port = free_port()
    variables = {"METRICS_API_KEY_BENCH": KEY, "METRICS_RATE_LIMIT": "1000000000", "METRICS_SERVER": server}
    limit = f"connectors.series.max_series={series}"
    quiet: list[Load] = []
    scraped: list[Load] = []
    scrapes: list[Scrape] = []
    with (
        tempfile.TemporaryDirectory() as name,
        process(Path(name), "--set", limit, prefix=prefixes[0], OTEL_PROMETHEUS_PORT=str(port), **variables) as (
            _,
            base,
        ),
    ):
        url = f"http://127.0.0.1:{port}/metrics"
        content = bodies(series)
        load = {"seconds": seconds, "connections": CONNECTIONS, "prefix": prefixes[1]}
        with httpx.Client(timeout=60, headers={"X-API-Key": KEY}) as client:
            for body in content:
                client.post(f"{base}/metrics", content=body).raise_for_status()
            first, idle, packed = scrape(client, url), scrape(client, url), scrape(client, url, gzip=True)
        for _ in range(rounds):
            quiet.append(push(f"{base}/metrics", KEY, *content, **load))  # type: ignore[arg-type]
            with _scraping(url, scrapes):
                scraped.append(push(f"{base}/metrics", KEY, *content, **load))  # type: ignore[arg-type]
    (before, after) = (statistics.median(each.p99 for each in loads) for loads in (quiet, scraped))
    (rate, with_rate) = (statistics.median(each.rate for each in loads) for loads in (quiet, scraped))
    loaded = statistics.median(each.seconds for each in scrapes)
    print(
        f"{server:10} {series} series, {idle.lines} lines, {idle.size / 1e6:.1f} MB: "
        f"first {first.seconds * 1e3:.0f} ms, unchanged {idle.seconds * 1e3:.0f} ms, gzip {packed.seconds * 1e3:.0f} ms, "
        f"under load {loaded * 1e3:.0f} ms   "
        f"push p99 {before:.2f} ms, with a scrape a second {after:.2f} ms = {after / before:.2f} x   "
        f"rate {with_rate / rate:.2f} x",
        flush=True,
    )
