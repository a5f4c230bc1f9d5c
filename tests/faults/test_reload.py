"""Twenty reloads under load, good and bad ones in turn: no request fails, nothing is lost or stored twice, no counter goes back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.filling import Pushers, faults_of, settle
from tests.faults.scraping import Scraper
from tests.leaks import secret
from tests.running import OURS, command, process, wait_until_healthy

pytestmark = pytest.mark.faults

SERVERS = pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
LIMIT = 30
PACE = 0.005
SUCCESSFUL, SUCCEEDED = "config_last_reload_successful", "config_last_reload_success_timestamp_seconds"
PLAIN = "extends: production\n"
FILTER = """
processors: {filter: {drop: [{types: [health_check]}]}}
service: {pipelines: {events: {processors: [auth, rate_limit, validate, filter, batch]}}}
"""
GOOD = [
    "extensions: {api_keys: {rate_limit: 2000000}}",
    FILTER,
    "extensions: {retention: {days: 7}}",
    "exporters: {debug: {enabled: true, verbosity: basic}}",
    "exporters: {debug: {enabled: true, verbosity: detailed}}",
    "processors: {batch: {size: 50, flush_interval: 0.5}}",
    "exporters: {otlp: {endpoint: 'http://127.0.0.1:9'}}",
    "receivers: {http: {max_request_size: 1MB, max_connections: 500}}",
    "service: {log: {level: warning}}",
    "",
]
"""What is laid over the shipped configuration, one after the other."""
BAD = {
    "receivers: {http: {port: 1}}": "receivers.http.port: cannot change from",
    "receivers: {http: [": "service.yaml:3",
    "receivers: {http: {prot: 1}}": "receivers.http.prot: is not a known",
    "exporters: {otlp: {endpoint: 'https://127.0.0.1:9', tls: {ca: /nowhere.pem}}}": "cannot use /nowhere.pem",
}


@dataclass
class Life:
    """A service of a file of its own, and how to have it loaded again."""

    folder: Path
    running: subprocess.Popen[bytes]
    base: str
    environ: Mapping[str, str]
    scraped: str

    def write(self, overlay: str) -> None:
        (self.folder / "service.yaml").write_text(PLAIN + overlay + "\n")

    def hang_up(self) -> None:
        self.running.send_signal(signal.SIGHUP)

    def errors(self) -> list[str]:
        lines = (self.folder / "service.log").read_text().splitlines()
        return [line["message"] for line in map(json.loads, lines) if line["level"] in ("ERROR", "CRITICAL")]

    def make_key(self) -> str:
        """A key with a small limit of its own."""
        words = ["keys", "create", "--service", "limited", "--rate-limit", str(LIMIT), "--config", "service.yaml"]
        made = subprocess.run(
            [*OURS, *words], cwd=self.folder, env=self.environ, capture_output=True, text=True, check=True
        )
        found = re.search(r"mcp_metrics_[\w-]{49}", made.stdout)
        assert found is not None
        return secret(found[0])

    def tokens(self, key: str) -> int:
        answer = httpx.get(f"{self.base}/rate-limit", headers={"X-API-Key": key})
        return int(answer.json()["available_tokens"])

    def use_up(self, key: str) -> None:
        """Empty the bucket of that key."""
        with httpx.Client(base_url=self.base, headers={"X-API-Key": key}) as client:
            while client.post("/metrics", json={"service": "limited", "metrics": []}).status_code != 429:
                pass


def environ_of(folder: Path, running: subprocess.Popen[bytes]) -> dict[str, str]:
    pairs = Path(f"/proc/{running.pid}/environ").read_bytes().split(b"\0")
    return dict(each.decode().split("=", 1) for each in pairs if each)


def life(folder: Path, running: subprocess.Popen[bytes], base: str) -> Life:
    environ = environ_of(folder, running)
    return Life(folder, running, base, environ, f"http://127.0.0.1:{environ['OTEL_PROMETHEUS_PORT']}/metrics")


@SERVERS
def test_twenty_reloads_under_load(tmp_path: Path, server: str) -> None:
    (tmp_path / "service.yaml").write_text(PLAIN)
    with process(tmp_path, config="service.yaml", METRICS_SERVER=server) as (running, base):
        service = life(tmp_path, running, base)
        key = service.make_key()
        service.use_up(key)
        emptied = time.monotonic()
        with Pushers(base, pace=PACE) as pushers, Scraper(service.scraped) as scraper:
            pushers.wait_for(200, 20, 10)
            for number, overlay in enumerate(GOOD):
                before = scraper.value(SUCCEEDED)
                service.write(overlay)
                service.hang_up()
                scraper.wait_for(SUCCEEDED, before, more=True)
                pushers.wait_for(200, 20, 10)
                bad, line = list(BAD.items())[number % len(BAD)]
                logged = len(service.errors())
                service.write(bad)
                service.hang_up()
                scraper.wait_for(SUCCESSFUL, 1, more=False)
                assert [line in each for each in service.errors()[logged:]] == [True]
                pushers.wait_for(200, 20, 10)
        assert service.tokens(key) <= (time.monotonic() - emptied) * LIMIT / 60 + 1
        settle(base, 20)
        assert pushers.wrong == []
        assert pushers.statuses.keys() == {200}
        assert scraper.wrong == []
        assert faults_of(pushers, tmp_path / "metrics.db") == {}
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0


def test_a_restart_in_place_of_a_reload_is_found(tmp_path: Path) -> None:
    """The negative control: the same checks see the requests that fail, the counters that begin anew and the full buckets."""
    (tmp_path / "service.yaml").write_text(PLAIN)
    with process(tmp_path, config="service.yaml") as (running, base):
        service = life(tmp_path, running, base)
        key = service.make_key()
        service.use_up(key)
        emptied = time.monotonic()
        with Pushers(base, pace=PACE) as pushers, Scraper(service.scraped) as scraper:
            pushers.wait_for(200, 200, 10)
            running.send_signal(signal.SIGTERM)
            assert running.wait(15) == 0
            called, _ = command(tmp_path, config="service.yaml")
            with (tmp_path / "again.log").open("wb") as log:
                again = subprocess.Popen(called, env=service.environ, cwd=tmp_path, stderr=log)
            try:
                wait_until_healthy(base, again, tmp_path / "again.log")
                scraped = scraper.scrapes
                pushers.wait_for(200, 20, 10)
                scraper.wait_for(SUCCEEDED, 0, more=True)
                while scraper.scrapes < scraped + 2:
                    time.sleep(0.05)
                assert service.tokens(key) > (time.monotonic() - emptied) * LIMIT / 60 + 1
            finally:
                again.terminate()
                assert again.wait(15) == 0
    assert any("no answer" in each for each in pushers.wrong)
    assert any("otelcol_receiver_accepted_items_total" in each for each in scraper.wrong)
    pushers.acknowledged.add("never-stored")
    assert faults_of(pushers, tmp_path / "metrics.db")["lost"] >= {"never-stored"}
