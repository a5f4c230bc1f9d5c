"""Prometheus presents a key as docs/deploy/monitoring.md shows it; without it, the target is down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.leaks import secret
from tests.promql import ROOT
from tests.running import free_port, process
from tests.test_docs import blocks
from tests.test_prometheus import prometheus, wait_for

pytestmark = pytest.mark.deploy

SCRAPED = secret("a-key-for-who-scrapes-that-is-long-enough")
FILE = "/etc/prometheus/metrics-service.key"


def shown(folder: Path, target: int) -> dict[str, Any]:
    """The configuration that is shown with a key, for that port, every second, with the key's file in that folder."""
    (text,) = (each for each in blocks(ROOT / "docs" / "deploy" / "monitoring.md", "yml") if FILE in each)
    (folder / "key").write_text(SCRAPED)
    text = text.replace(FILE, str(folder / "key")).replace("localhost:9465", f"127.0.0.1:{target}")
    return {"global": {"scrape_interval": "1s"}, **yaml.safe_load(text)}


def test_prometheus_scrapes_with_the_key_and_without_it_says_that_the_service_is_down(tmp_path: Path) -> None:
    port = free_port()
    with process(tmp_path, "--set", f"exporters.prometheus.key={SCRAPED}", OTEL_PROMETHEUS_PORT=str(port)):
        configuration = shown(tmp_path, port)
        (job,) = configuration["scrape_configs"]
        without = {key: value for key, value in job.items() if key != "authorization"}
        configuration["scrape_configs"].append({**without, "job_name": "without"})
        with prometheus(tmp_path, port, configuration) as server:
            wait_for(server, 'up{job="metrics-service"}', 1)
            wait_for(server, 'up{job="without"}', 0)
