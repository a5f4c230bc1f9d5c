"""The alerts that docs/operating.md advises: Prometheus can read them, and they ask for what is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.programs import need
from tests.test_docs import DOCS, blocks

ALERTS = re.findall(r"^\| (.+) \| `(.+)` \|$", (DOCS / "operating.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_promtool_reads_every_alert(tmp_path: Path) -> None:
    rules = [{"alert": f"alert{number}", "expr": expression} for number, (_, expression) in enumerate(ALERTS)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "advised", "rules": rules}]}))
    checked = subprocess.run(
        [need("promtool", "prometheus"), "check", "rules", tmp_path / "rules.yml"], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr.decode()
    assert f"{len(ALERTS)} rules found" in checked.stdout.decode()
    assert len(ALERTS) > 5


def test_every_alert_asks_for_metrics_that_there_are() -> None:
    shown = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE))
    for _, expression in ALERTS:
        asked = {each.removesuffix("_bucket") for each in re.findall(r"\b[a-z]+_[a-z_]+\b(?!\()", expression)}
        assert asked, expression
        assert asked - shown == set(), expression


def test_promtool_reads_the_scrape_configuration(tmp_path: Path) -> None:
    (shown,) = blocks(DOCS / "operating.md", "yml")
    (tmp_path / "prometheus.yml").write_text(shown)
    command = [need("promtool", "prometheus"), "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()
