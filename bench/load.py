"""The load: wrk (Debian's package), a bounded time on kept-alive connections of one address on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

TRIES = 5
"""Runs of wrk until one gets an answer: on busy cores a second may end before wrk had one."""

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["X-API-Key"] = "{key}"
local bad = 0
local threads = {{}}
function setup(thread) table.insert(threads, thread) end
function init(args)
  refused, sent, requests = 0, 0, {{}}
  for body in io.lines("{bodies}") do table.insert(requests, wrk.format(nil, nil, nil, body)) end
end
function request()
  sent = sent + 1
  return requests[sent % #requests + 1]
end
function response(status) if status ~= 200 then refused = refused + 1 end end
function done(summary, latency, requests)
  for _, thread in ipairs(threads) do bad = bad + thread:get("refused") end
  io.write(string.format("RESULT %d %d %d %d %d\\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), bad))
end
"""


@dataclass(frozen=True)
class Load:
    """What a run of wrk saw: requests answered and those not with 200, the time in seconds, latencies in milliseconds."""

    requests: int
    seconds: float
    median: float
    p99: float
    refused: int

    @property
    def rate(self) -> float:
        """Requests answered a second."""
        return self.requests / self.seconds


def push(url: str, key: str, *bodies: bytes, seconds: int, connections: int, prefix: list[str]) -> Load:
    """Push these bodies, one after the other, each on one line, for that long. `prefix` is put before the command, for taskset.

    Raises `RuntimeError` if no push is answered in several runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        content, script = Path(folder, "bodies"), Path(folder, "push.lua")
        content.write_bytes(b"\n".join(bodies))
        script.write_text(_SCRIPT.format(bodies=content, key=key))
        command = [*prefix, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
        for _ in range(TRIES):
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", output)
            assert found, output
            requests, microseconds, median, p99, refused = map(int, found.groups())
            if requests and median:
                return Load(requests, microseconds / 1e6, median / 1e3, p99 / 1e3, refused)
    raise RuntimeError(f"no push to {url} was answered within {seconds} s")


def processor_seconds(pid: int) -> float:
    """The CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
