"""`python -m bench.compare REVISION`: CPU time a push, this checkout and an earlier revision side by side.

Both services run at the same time with the production configuration, each with its own data. The load alternates between
them, so that a slow phase of the machine hits both. A round ends with a flush, so the figure includes delivery to the store.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from bench.load import processor_seconds, push
from bench.samples import body
from tests.running import free_port, wait_until_healthy

KEY = "bench-key-that-is-long-enough-for-no-warning"
ROOT = Path(__file__).parents[1]


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with the files of that revision."""
    with tempfile.TemporaryDirectory() as name:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", name], input=archive.stdout, check=True)
        yield Path(name)


@contextmanager
def service(tree: Path, data: Path, server: str, core: int) -> Iterator[tuple[int, str]]:
    """The service of a tree, bound to one core: its process id and its base URL."""
    port = free_port()
    variables = {
        "PYTHONPATH": str(tree),
        "SQLITE_DB_PATH": str(data / "metrics.db"),
        "METRICS_SERVICE_HOST": "127.0.0.1",
        "METRICS_SERVICE_PORT": str(port),
        "OTEL_PROMETHEUS_PORT": str(free_port()),
        "METRICS_API_KEY_BENCH": KEY,
        "METRICS_RATE_LIMIT": "1000000000",
        "METRICS_SERVER": server,
    }
    command = ["taskset", "-c", str(core), sys.executable, "-m", "pipeline.cli", "run", "--config", "production"]
    log = data / "service.log"
    with log.open("wb") as written:
        running = subprocess.Popen(command, cwd=data, env={**os.environ, **variables}, stderr=written)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", running, log)
        yield running.pid, f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(60)


def measure(pid: int, base: str, content: bytes, seconds: int, connections: int) -> float:
    """CPU microseconds a push, delivery included."""
    before = processor_seconds(pid)
    load = push(
        f"{base}/metrics", KEY, content, seconds=seconds, connections=connections, prefix=["taskset", "-c", "1"]
    )
    httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=120).raise_for_status()
    assert not load.refused, f"{load.refused} pushes were refused"
    return 1e6 * (processor_seconds(pid) - before) / load.requests


def main() -> None:
    """Print one line for each server and size."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("revision", help="the earlier revision")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=3, help="load of one round")
    parser.add_argument("--servers", nargs="+", default=["hypercorn", "uvicorn"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 100], help="metrics in one push")
    parser.add_argument("--connections", type=int, default=32)
    chosen = parser.parse_args()
    with checkout(chosen.revision) as earlier:
        for server in chosen.servers:
            for size in chosen.sizes:
                _compare(earlier, server, size, chosen)


def _compare(earlier: Path, server: str, size: int, chosen: argparse.Namespace) -> None:
    content = body(size)
    figures: dict[str, list[float]] = {"before": [], "now": []}
    with ExitStack() as stack:
        trees = {"before": earlier, "now": ROOT}
        running = {}
        for name, tree in trees.items():
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            running[name] = stack.enter_context(service(tree, data, server, 0))
        for pid, base in running.values():  # caches fill, branches warm up
            measure(pid, base, content, 1, chosen.connections)
        for number in range(chosen.rounds):
            order = ["before", "now"] if number % 2 else ["now", "before"]
            for name in order:
                figures[name].append(measure(*running[name], content, chosen.seconds, chosen.connections))
    ratios = [now / before for now, before in zip(figures["now"], figures["before"], strict=True)]
    print(
        f"{server:10} pushes of {size:<4} before {_shown(figures['before'])}   now {_shown(figures['now'])}   "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


def _shown(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.0f} µs ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
