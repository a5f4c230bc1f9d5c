"""`make bench`: the real service with the production configuration, fsync before the answer, beside two references.

(a) an ASGI application on the same server that only reads the body and answers the same bytes; (b) a bare loop that decodes the
same JSON and inserts it into the same tables. Each figure of ours alternates with its reference; what counts are the ratios,
since machines differ. In (b) what is stored counts, not what is accepted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from bench import forward, scrape, series
from bench.load import Load, processor_seconds, push
from bench.samples import body
from tests.running import free_port, process

KEY = "bench-key-that-is-long-enough-for-no-warning"
CONNECTIONS = 32
SERIES = (1_250, 10_000)
"""Of OTLP, half of them histograms: 10,000 and 80,000 lines of samples."""


@dataclass(frozen=True)
class Cores:
    """How many cores the server may use, and the commands' prefixes that see to it."""

    count: int
    server: list[str]
    load: list[str]


ONE = Cores(1, ["taskset", "-c", "0"], ["taskset", "-c", "1"])
TWO = Cores(2, [], [])


@contextmanager
def _service(folder: Path, server: str, cores: Cores) -> Iterator[tuple[int, str]]:
    variables = {"METRICS_API_KEY_BENCH": KEY, "METRICS_RATE_LIMIT": "1000000000", "METRICS_SERVER": server}
    with process(folder, config="production", prefix=cores.server, **variables) as (running, base):
        yield running.pid, base


@contextmanager
def _echo(server: str, cores: Cores) -> Iterator[tuple[int, str]]:
    port = free_port()
    running = subprocess.Popen([*cores.server, sys.executable, "-m", "bench.echo", server, str(port)])
    try:
        for _ in range(500):
            try:
                httpx.post(f"http://127.0.0.1:{port}/", content=b"x")
                break
            except httpx.TransportError:
                time.sleep(0.02)
        yield running.pid, f"http://127.0.0.1:{port}"
    finally:
        running.kill()
        running.wait()


def _stored(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        ((rows,),) = connection.execute("SELECT count(*) FROM metrics")
    connection.close()
    return int(rows)


def _resident(pid: int) -> float:
    """Resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def _beside_echo(server: str, cores: Cores, size: int, seconds: int, rounds: int) -> None:
    content = body(size)
    ours: list[Load] = []
    echoes: list[Load] = []
    with (
        tempfile.TemporaryDirectory() as name,
        _service(Path(name), server, cores) as (pid, base),
        _echo(server, cores) as (echo_pid, echo),
    ):
        before = [processor_seconds(each) for each in (pid, echo_pid)]
        for _ in range(rounds):
            for url, loads in ((echo, echoes), (base, ours)):
                loads.append(
                    push(f"{url}/metrics", KEY, content, seconds=seconds, connections=CONNECTIONS, prefix=cores.load)
                )
        used = [processor_seconds(each) - start for each, start in zip((pid, echo_pid), before, strict=True)]
    cost, echo_cost = (
        1e6 * each / sum(load.requests for load in loads) for each, loads in zip(used, (ours, echoes), strict=True)
    )
    refused = sum(load.refused for load in ours)
    rate, reference = (statistics.median(load.rate for load in loads) for loads in (ours, echoes))
    median, p99 = (statistics.median(getattr(load, name) for load in ours) for name in ("median", "p99"))
    print(
        f"{server:10} {cores.count} core{'s' if cores.count > 1 else ' '} pushes of {size:<4} "
        f"{rate:8.0f}/s of {reference:8.0f}/s (a) = {rate / reference:4.2f}   "
        f"median {median:6.2f} ms  p99 {p99:7.2f} ms = {p99 / median:4.1f} x   "
        f"processor {cost:.0f} µs a push, {echo_cost:.0f} (a)   refused {refused}",
        flush=True,
    )


def _beside_raw(server: str, cores: Cores, size: int, seconds: int, rounds: int) -> None:
    content = body(size)
    ours: list[float] = []
    raws: list[float] = []
    accepted = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _service(folder, server, cores) as (pid, base):
            raw_database = folder / "raw.db"
            _migrate(raw_database)
            for _ in range(rounds):
                command = [*cores.server, sys.executable, "-m", "bench.raw", str(raw_database), str(seconds), str(size)]
                raws.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
                before, started = _stored(folder / "metrics.db"), time.monotonic()
                load = push(
                    f"{base}/metrics", KEY, content, seconds=seconds, connections=CONNECTIONS, prefix=cores.load
                )
                stored, elapsed = _stored(folder / "metrics.db") - before, time.monotonic() - started
                ours.append(stored / elapsed)
                accepted += (load.requests - load.refused) * size
                httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=60)
            memory = _resident(pid)
            total = _stored(folder / "metrics.db")
    rate, reference = statistics.median(ours), statistics.median(raws)
    print(
        f"{server:10} {cores.count} core{'s' if cores.count > 1 else ' '} pushes of {size:<4} "
        f"stored {rate:8.0f}/s of {reference:8.0f}/s (b) = {rate / reference:4.2f}   "
        f"accepted {accepted}, stored in the end {total}, resident {memory:.0f} MB",
        flush=True,
    )


def _migrate(database: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "migrate", "up", "--config", "production"]
    subprocess.run(command, env={**os.environ, "SQLITE_DB_PATH": str(database)}, check=True, capture_output=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=4, help="of load a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", nargs="+", default=["hypercorn", "uvicorn"])
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--series", nargs="+", type=int, default=SERIES, help="of OTLP, in a scrape")
    parser.add_argument("--only", choices=["series", *_MEASURES])
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.exit(2, "wrk is missing (apt-get install wrk)\n")
    measures: dict[str, Callable[..., None]] = {**_MEASURES, "scrape": partial(_scrape, counts=chosen.series)}
    if chosen.only in (None, "series"):
        series.main()
    for server in chosen.servers:
        for cores in (each for each in (ONE, TWO) if each.count in chosen.cores):
            for name, measure in measures.items():
                if chosen.only in (None, name):
                    measure(server, cores, seconds=chosen.seconds, rounds=chosen.rounds)


def _scrape(server: str, cores: Cores, seconds: int, rounds: int, counts: Sequence[int] = SERIES) -> None:
    for count in counts:
        scrape.measure(server, (cores.server, cores.load), count, seconds, rounds)


def _forward(server: str, cores: Cores, seconds: int, rounds: int) -> None:
    forward.measure(server, (cores.server, cores.load), seconds, rounds)


def _echoes(server: str, cores: Cores, seconds: int, rounds: int) -> None:
    for size in (1, 100):
        _beside_echo(server, cores, size, seconds, rounds)


def _raw(server: str, cores: Cores, seconds: int, rounds: int) -> None:
    _beside_raw(server, cores, 100, seconds, rounds)


_MEASURES = {"scrape": _scrape, "forward": _forward, "echo": _echoes, "raw": _raw}


if __name__ == "__main__":
    main()
