"""An OTLP collector as a process of its own, for measurements: it does what its standard input says, and answers on its output.

up, down     listen, or be gone
total NAME   the sum of the newest values of that metric's series, and how many points of it came
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

from tests.collector import Collector, http_collector
from tests.running import free_port


@dataclass(frozen=True)
class Remote:
    """The process, and where it listens while it does."""

    running: subprocess.Popen[str]
    url: str

    def ask(self, line: str) -> str:
        """Say something to it, and wait for its answer."""
        assert self.running.stdin is not None
        assert self.running.stdout is not None
        self.running.stdin.write(f"{line}\n")
        self.running.stdin.flush()
        return self.running.stdout.readline().strip()

    def total(self, name: str) -> tuple[float, int]:
        """See `total` above."""
        total, points = self.ask(f"total {name}").split()
        return float(total), int(points)


@contextmanager
def collector(prefix: list[str]) -> Iterator[Remote]:
    """One that is up. `prefix` is put before its command, for taskset."""
    port = free_port()
    command = [*prefix, sys.executable, "-m", "bench.collector", str(port)]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    remote = Remote(running, f"http://127.0.0.1:{port}")
    try:
        remote.ask("up")
        yield remote
    finally:
        running.kill()
        running.wait()


async def _serve(port: int) -> None:
    kept: dict[frozenset[tuple[str, object]], float] = {}
    count = 0
    listening = AsyncExitStack()
    now: Collector | None = None

    def take_over() -> int:
        """Keep the newest values, and forget the requests."""
        nonlocal count
        if now is None:
            return count
        for _, name, attributes, value, _ in now.points:
            kept[attributes | {("__name__", name)}] = value
            count += 1
        now.taken.clear()
        return count

    while line := (await asyncio.to_thread(sys.stdin.readline)).split():
        match line:
            case ["up"]:
                now = await listening.enter_async_context(http_collector(port))
            case ["down"]:
                take_over()
                await listening.aclose()
                take_over()
                now = None
        points = take_over()
        name = ("__name__", line[-1])
        print(sum(value for series, value in kept.items() if name in series), points, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
