"""The benchmark runs and prints its table; what it measures is for people to judge."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import need


@pytest.mark.timeout(300)
def test_the_benchmark_prints_a_line_a_scenario_and_refuses_nothing() -> None:
    need("wrk")
    need("taskset", "util-linux")
    short = ["--seconds", "1", "--rounds", "1", "--series", "100"]
    command = [sys.executable, "-m", "bench", *short, "--servers", "uvicorn", "--cores", "1"]
    root = Path(__file__).parent.parent
    table = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    lines = table.splitlines()
    expected = [
        *["series .* µs"] * 2,
        r"\d+ series, \d+ lines.* with a scrape a second .* = \d",
        "both collectors .*, one gone .* x ",
        *[r"pushes of (1|100) .*\((a|b)\) = \d"] * 3,
    ]
    found = [re.search(pattern, line) for pattern, line in zip(expected, lines, strict=True)]
    assert all(found), table
    assert all("refused 0" in line for line in lines[3:6])
