"""The configuration and the rules of deploy/prometheus, by promtool: each alert fires when it should, and is silent when it should be."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import need
from tests.promql import PROMETHEUS, ROOT, rules
from tests.test_docs import blocks

pytestmark = pytest.mark.deploy

SHOWN = ROOT / "docs" / "deploy" / "monitoring.md"
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in rules("alerts.yml")}
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        [need("promtool", "prometheus"), *map(str, arguments)], capture_output=True, check=False, text=True
    )


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case, with the alert that it is about."""
    for path in CASES:
        for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            yield case["name"].split()[0], case


def test_promtool_reads_the_configuration_and_the_rules_that_it_names() -> None:
    checked = promtool("check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert "2 rule files found" in checked.stdout
    assert f"{len(ALERTS)} rules found" in checked.stdout


@pytest.mark.parametrize("text", blocks(SHOWN, "yml"))
def test_promtool_reads_every_configuration_that_is_shown(text: str, tmp_path: Path) -> None:
    (tmp_path / "shown.yml").write_text(text)
    checked = promtool("check", "config", "--syntax-only", tmp_path / "shown.yml")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_are_silent_as_the_cases_say(path: Path) -> None:
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    kinds: dict[str, set[str]] = {name: set() for name in ALERTS}
    for alert, case in cases():
        kind = case["name"].split()[1]
        (query,) = case["promql_expr_test"]
        assert f'alertname="{alert}"' in query["expr"]
        assert bool(query.get("exp_samples")) == (kind == "fires"), case["name"]
        kinds[alert].add(kind)
    assert {name: found for name, found in kinds.items() if found != {"fires", "is"}} == {}


def test_an_alert_that_always_or_never_fires_is_found_by_its_cases(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path / "broken")
    text = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))
    broken = [rule for group in text["groups"] for rule in group["rules"]]
    for number, rule in enumerate(broken):
        rule["expr"] = ("vector(1)", "vector(0) > 1")[number % 2]
    (tmp_path / "broken" / "alerts.yml").write_text(yaml.safe_dump(text))
    tested = promtool("test", "rules", *sorted((tmp_path / "broken" / "tests").glob("*.yml")))
    found = {alert for alert in ALERTS if f'alertname=\\"{alert}\\"' in tested.stdout + tested.stderr}
    assert found == ALERTS.keys()
