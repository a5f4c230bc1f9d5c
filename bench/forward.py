"""What it does to pushes, and to another collector, when a collector is gone for as long as the load lasts."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import httpx

from bench.collector import Remote, collector
from bench.load import Load, push
from bench.samples import body
from tests.running import process, rows

KEY = "bench-key-that-is-long-enough-for-no-warning"
CONNECTIONS = 32
MOST_SECONDS_THERE = 60
METRIC = "mcp_tool_executions_total"
CONFIGURATION = """
extends: production
exporters:
  otlp/near: {{endpoint: "{near}"}}
  otlp/away: {{endpoint: "{away}"}}
service:
  pipelines:
    metrics:
      exporters: [prometheus, otlp/near, otlp/away]
"""


def measure(server: str, prefixes: tuple[list[str], list[str]], seconds: int, rounds: int) -> None:
    """Print one line. Rounds in which both collectors are there, a minute at the most, and in which one is gone alternate."""
    there: list[Load] = []
    gone: list[Load] = []
    variables = {"METRICS_API_KEY_BENCH": KEY, "METRICS_RATE_LIMIT": "1000000000", "METRICS_SERVER": server}
    with tempfile.TemporaryDirectory() as name, collector(prefixes[1]) as near, collector(prefixes[1]) as away:
        folder = Path(name)
        (folder / "bench.yaml").write_text(CONFIGURATION.format(near=near.url, away=away.url))
        with process(folder, config="bench.yaml", prefix=prefixes[0], **variables) as (_, base):
            for _ in range(rounds):
                there.append(_push(base, min(seconds, MOST_SECONDS_THERE), prefixes[1]))
                before = near.total(METRIC)[1]
                away.ask("down")
                gone.append(_push(base, seconds, prefixes[1]))
                meanwhile = near.total(METRIC)[1] - before
                away.ask("up")
                _flush(base)
                there.append(_push(base, min(seconds, MOST_SECONDS_THERE), prefixes[1]))
            _flush(base)
            _report(server, folder, there, gone, (near, away), meanwhile)


def _push(base: str, seconds: int, prefix: list[str]) -> Load:
    return push(f"{base}/metrics", KEY, body(1), seconds=seconds, connections=CONNECTIONS, prefix=prefix)


def _flush(base: str) -> None:
    """Wait until everything has arrived; a collector that was gone is tried again within a minute."""
    while True:
        answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=120)
        if answer.json()["status"] == "success":
            return
        time.sleep(0.2)


def _report(
    server: str,
    folder: Path,
    there: list[Load],
    gone: list[Load],
    collectors: tuple[Remote, Remote],
    meanwhile: int,
) -> None:
    (with_both, with_one) = (statistics.median(each.p99 for each in loads) for loads in (there, gone))
    (rate, rate_gone) = (statistics.median(each.rate for each in loads) for loads in (there, gone))
    ((stored,),) = rows(folder / "metrics.db", "SELECT count(*) FROM metrics")
    acked = sum(each.requests - each.refused for each in [*there, *gone])
    totals = [each.total(METRIC) for each in collectors]
    print(
        f"{server:10} both collectors {rate:6.0f}/s p99 {with_both:6.2f} ms, one gone for {gone[0].seconds:.0f} s "
        f"{rate_gone:6.0f}/s p99 {with_one:6.2f} ms = {with_one / with_both:.2f} x   "
        f"refused {sum(each.refused for each in [*there, *gone])}   answered {acked}, stored {stored}, "
        f"the other collector has {totals[0][0]:.0f} by {totals[0][1]} points ({meanwhile} of them while one was gone), "
        f"the one that was gone {totals[1][0]:.0f} by {totals[1][1]}",
        flush=True,
    )
