"""docs/deployment.md, walked by a new operator: every command of it, in a folder that looks like a fresh checkout."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leaks import secret
from tests.programs import need
from tests.running import environment, free_port, process, wait_until_healthy
from tests.test_docs import DOCS, ROOT, blocks
from tests.test_docs_run import shell

pytestmark = pytest.mark.timeout(300)

PAGE = DOCS / "deployment.md"
MAKE_RUN, BY_HAND, PUSH, *OTHERS = blocks(PAGE, "sh")
PREPARED = "make .venv/installed"
"""What this test stands on: how else would it run."""


def checkout(folder: Path) -> Path:
    """The files of a checkout that the commands name, and the environment that `make` has made."""
    for name in ("migrate.py", "create_api_key.py", ".env.example"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


def test_the_commands_of_the_development_section_lead_to_a_metric_that_is_stored(tmp_path: Path) -> None:
    need("curl")
    folder = checkout(tmp_path)
    prepared, *commands, run = BY_HAND.splitlines()
    assert prepared == PREPARED
    port = free_port()
    variables = {"METRICS_SERVICE_PORT": str(port), "OTEL_PROMETHEUS_PORT": str(free_port())}
    printed = "".join(shell(command, folder, **variables) for command in commands)
    (key,) = set(re.findall(r"mcp_metrics_\S+", printed))
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            ["sh", "-c", f"exec {run}"], cwd=folder, env={**os.environ, **variables}, stderr=log, start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", running, folder / "log")
        health, push = (
            shell(line.replace("localhost:8890", f"127.0.0.1:{port}"), folder, KEY=secret(key))
            for line in PUSH.splitlines()
        )
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(timeout=20)
    assert '"healthy"' in health
    assert '"accepted":1' in push


def test_the_commands_of_the_other_sections_work_beside_the_service(tmp_path: Path) -> None:
    at = str(Path(sys.prefix) / "bin")
    variables = {"METRICS_SERVICE_PORT": str(free_port())}
    ours = {**os.environ, **environment(tmp_path, **variables), "PATH": f"{at}:{os.environ['PATH']}"}
    codes = {}
    with process(tmp_path, **variables):
        for command in "".join(OTHERS).splitlines():
            ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=ours, capture_output=True, text=True)
            assert ended.stdout, ended.stderr
            for key in re.findall(r"mcp_metrics_\S+", ended.stdout):
                secret(key)
            codes[command] = ended.returncode
    assert codes.pop("metrics-service doctor --config production") in (0, 1)  # whatever it finds on this machine
    assert set(codes.values()) == {0}, codes
    assert MAKE_RUN.strip() == blocks(ROOT / "README.md", "sh")[0].strip()
