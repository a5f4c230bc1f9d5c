"""SIGHUP to a real process. SIGTERM is tested where stopping is."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.running import KEY, command, free_port, process, wait_until_healthy
from tests.scrapes import total


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "service.log").read_text().splitlines()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(folder: Path, message: str) -> int:
    """How often the service has said that."""
    return sum(line["message"] == message for line in log(folder))


def test_a_hangup_reads_the_env_file_again(tmp_path: Path) -> None:
    env_file = tmp_path / "service.env"
    env_file.write_text("METRICS_RETENTION_DAYS=30\n")
    with process(tmp_path, "--env-file", "service.env") as (running, base):
        first = [line for line in log(tmp_path) if line["message"] == "ready"][-1]
        env_file.write_text("METRICS_RETENTION_DAYS=7\n")
        running.send_signal(signal.SIGHUP)
        wait_for(lambda: said(tmp_path, "ready") == 2)
        assert [line for line in log(tmp_path) if line["message"] == "ready"][-1]["configuration"] != first[
            "configuration"
        ]
        env_file.write_text("METRICS_RETENTION_DAYS=many\nTHIS IS NONE\n")
        running.send_signal(signal.SIGHUP)
        wait_for(lambda: said(tmp_path, "ready") == 3)
        (refused,) = (line for line in log(tmp_path) if line["level"] == "ERROR")
        assert refused["message"] == "not reloaded: service.env:2: must be NAME=value, a comment or empty"
        assert httpx.get(f"{base}/health").status_code == 200


def test_each_hangup_reloads_once(tmp_path: Path) -> None:
    """A second reload would follow while the next hangup is on its way."""
    hangups = 20
    with process(tmp_path) as (running, _):
        for number in range(hangups):
            running.send_signal(signal.SIGHUP)
            wait_for(lambda number=number: said(tmp_path, "ready") >= number + 2)  # type: ignore[misc]
    assert (said(tmp_path, "reloading"), said(tmp_path, "ready")) == (hangups, hangups + 1)


def test_the_log_level_changes_and_back(tmp_path: Path) -> None:
    env_file = tmp_path / "service.env"
    env_file.write_text("")
    port = free_port()
    with process(tmp_path, "--env-file", "service.env", OTEL_PROMETHEUS_PORT=str(port)) as (running, base):

        def metric() -> float:
            text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            return total(text, "config_last_reload_success_timestamp_seconds")

        def push() -> None:
            document = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
            httpx.post(f"{base}/metrics", json=document, headers={"X-API-Key": KEY}).raise_for_status()

        push()
        wait_for(lambda: said(tmp_path, "Processed metrics") == 1)
        loaded = metric()
        env_file.write_text("LOG_LEVEL=WARNING\n")
        running.send_signal(signal.SIGHUP)
        wait_for(lambda: metric() > loaded)
        quiet = said(tmp_path, "Processed metrics")
        push()
        assert said(tmp_path, "Processed metrics") == quiet
        env_file.write_text("LOG_LEVEL=info\nLOG_FORMAT=text\n")
        running.send_signal(signal.SIGHUP)
        text = tmp_path / "service.log"
        wait_for(lambda: "INFO    service: ready" in text.read_text())
        push()
        wait_for(lambda: "receiver.http: Processed metrics" in text.read_text())


def test_hangups_while_it_starts_and_while_it_stops_are_harmless(tmp_path: Path) -> None:
    port = free_port()
    called, environ = command(
        tmp_path, METRICS_SERVICE_PORT=str(port), METRICS_SERVICE_HOST="127.0.0.1", METRICS_JOURNAL_RESERVE="64MiB"
    )
    base = f"http://127.0.0.1:{port}"
    with (tmp_path / "service.log").open("wb") as written:
        running = subprocess.Popen(called, env=environ, stderr=written, cwd=tmp_path)
    try:
        wait_for(lambda: (tmp_path / "service.log").stat().st_size > 0)
        while not said(tmp_path, "ready"):
            running.send_signal(signal.SIGHUP)
            time.sleep(0.005)
            assert running.poll() is None
        wait_until_healthy(base, running, tmp_path / "service.log")
        stalled = http.client.HTTPConnection("127.0.0.1", port)
        stalled.request("POST", "/metrics", iter([b"{"]), {"X-API-Key": KEY, "Content-Length": "100"})
        wait_for(lambda: said(tmp_path, "reloading") >= 1)
        running.send_signal(signal.SIGTERM)
        wait_for(lambda: said(tmp_path, "stopping") == 1)
        for _ in range(3):
            running.send_signal(signal.SIGHUP)
        stalled.close()
        assert running.wait(15) == 0
        assert log(tmp_path)[-1]["message"] == "stopped"
    finally:
        running.kill()
        running.wait()
