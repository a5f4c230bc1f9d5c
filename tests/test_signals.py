"""Signals to a real process. SIGTERM is tested where stopping is."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx

from tests.running import process


def test_a_hangup_is_survived_and_explained(tmp_path: Path) -> None:
    with process(tmp_path) as (running, base):
        running.send_signal(signal.SIGHUP)
        log = tmp_path / "service.log"
        deadline = time.monotonic() + 10
        while "SIGHUP" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert httpx.get(f"{base}/health").status_code == 200
