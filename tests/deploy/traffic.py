"""Representative load for dashboards: every type with all of its dimensions, what is refused or fails, and collectors that take nothing."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.leaks import secret
from tests.running import KEY

SMALL = secret("another-key-that-is-long-enough-for-no-warning")
"""The key of the service `small`, which uses its limit up."""
RATE_LIMIT = 400

TYPES: dict[str, dict[str, list[Any]]] = {
    "auth_request": {
        "success": [True, True, True, False],
        "method": ["jwt", "oauth", "session"],
        "server": ["gateway", "registry"],
        "target_kind": ["server", "tool"],
        "user_hash": ["u1", "u2", "u3"],
    },
    "tool_discovery": {
        "query": ["weather", "news", "nothing like it"],
        "results_count": [0, 3, 10],
        "top_k_services": [3, 5],
        "top_n_tools": [10],
    },
    "tool_execution": {
        "method": ["tools/call", "tools/list"],
        "server_name": ["weather", "files"],
        "server_path": ["/weather"],
        "tool_name": ["forecast", "read", "write"],
        "client_name": ["editor", "agent"],
        "client_version": ["1.0", "1.1"],
        "success": [True, True, False],
        "user_hash": ["u1", "u2"],
    },
    "registry_operation": {
        "operation": ["create", "read", "delete"],
        "resource_type": ["server", "agent"],
        "success": [True, False],
    },
    "health_check": {
        "endpoint": ["/health", "/ready"],
        "status_code": [200, 503],
        "healthy": [True, False],
    },
    "protocol_latency": {"flow_step": ["initialize", "tools_list", "tools_call"], "server_name": ["weather", "files"]},
    "custom": {"metric_name": ["cache_hits", "cache_misses"]},
}


def events(chosen: random.Random) -> list[dict[str, Any]]:
    """A few of every type."""
    return [
        {
            "type": kind,
            "value": chosen.uniform(0.01, 2) if kind in ("protocol_latency", "custom") else 1,
            "duration_ms": chosen.lognormvariate(3, 1),
            "dimensions": {name: chosen.choice(values) for name, values in dimensions.items()},
        }
        for kind, dimensions in TYPES.items()
        for _ in range(6)
    ]


PLUGIN = """
import time
from pipeline import ComponentConfig, Declaration, Processor, Signal, hookimpl


class Faulty(Processor[ComponentConfig]):
    "Fails for the service `faulty`, and blocks the event loop for `slow`."

    async def process(self, batch, context):
        if batch.service == "faulty":
            raise ValueError("a bug")
        if batch.service == "slow":
            time.sleep(0.7)
        return batch


@hookimpl
def declare_components():
    return [Declaration("faulty", Faulty, ComponentConfig, takes=frozenset(Signal))]
"""


def load(base: str, seconds: float) -> None:
    """Call the service for so long, twice a second, in all ways that it answers differently."""
    chosen, deadline = random.Random(7), time.monotonic() + seconds
    with httpx.Client(base_url=base) as client:
        while time.monotonic() < deadline:
            _call(client, chosen)
            time.sleep(0.5)  # the load's own pace, not a wait for something


def _call(client: httpx.Client, chosen: random.Random) -> None:
    good, document = {"X-API-Key": KEY}, {"service": chosen.choice(["gateway", "registry"]), "metrics": events(chosen)}
    bad = {"type": "unknown", "value": 1}
    client.post("/metrics", json=document, headers={**good, "Idempotency-Key": str(chosen.getrandbits(64))})
    repeated = {"service": "test", "metrics": [bad, events(chosen)[0]]}
    once = {**good, "Idempotency-Key": f"once-{chosen.getrandbits(64)}"}
    for _ in range(2):
        client.post("/metrics", json=repeated, headers=once)
    client.post("/metrics", json={"service": "test", "metrics": [bad]}, headers=good)
    for _ in range(3):
        client.post("/metrics", json={"service": "faulty", "metrics": events(chosen)}, headers=good)
    client.post("/metrics", content=b"{", headers=good)
    client.post("/metrics", json=document)
    client.post("/metrics", json=document, headers={"X-API-Key": "wrong"})
    client.get("/admin/database/size", headers=good)
    client.get("/nowhere")
    for path in ("/health", "/health/ready"):
        client.get(path)


def use_up(base: str) -> None:
    """Have the key of `small` refused for its limit."""
    with httpx.Client(base_url=base, headers={"X-API-Key": SMALL}) as client:
        calls = (client.post("/metrics", content=b"{").status_code for _ in range(2 * RATE_LIMIT))
        assert 429 in calls  # and no further call than that


def disturb(base: str) -> None:
    """Have the event loop blocked once, and send what no component hears of."""
    slow = {"service": "slow", "metrics": [{"type": "custom", "value": 1}]}
    httpx.post(f"{base}/metrics", json=slow, headers={"X-API-Key": KEY}).raise_for_status()
    with socket.create_connection(("127.0.0.1", httpx.URL(base).port or 0)) as connection:
        connection.sendall(
            b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while connection.recv(1024):
            pass


class _Refusing(BaseHTTPRequestHandler):
    """A collector that wants a token at `/held`, and finds everything invalid elsewhere."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401 if self.path.startswith("/held") else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


@contextmanager
def refusing() -> Iterator[int]:
    """Such a collector; yields its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def configuration(folder: Path, collector: int, closed: int) -> str:
    """A file that extends `production`: one collector is not there, one waits for a token, one sets everything aside."""
    text = f"""
extends: production
processors:
  faulty:
  filter:
    drop:
      - dimensions: {{metric_name: cache_misses}}
exporters:
  otlp/away:
    endpoint: http://127.0.0.1:{closed}
  otlp/held:
    endpoint: http://127.0.0.1:{collector}/held
  otlp/strict:
    endpoint: http://127.0.0.1:{collector}/strict
    bisect: false
service:
  pipelines:
    events:
      processors: [auth, rate_limit, validate, filter, faulty, batch]
    metrics:
      exporters: [prometheus, otlp/away, otlp/held, otlp/strict]
"""
    (folder / "load.yaml").write_text(text)
    (folder / "plugins").mkdir()
    (folder / "plugins" / "faulty.py").write_text(PLUGIN)
    return str(folder / "load.yaml")
