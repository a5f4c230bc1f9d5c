"""The alerts of deploy/prometheus ask for what there is, and each has a page; tests/deploy has promtool run them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promql import ROOT, asked, rules, unknown
from tests.test_docs import blocks

SHOWN = ROOT / "docs" / "deploy" / "monitoring.md"
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in rules("alerts.yml")}
OF_THE_GUIDE = {"MetricsServiceDown", "HighErrorRate", "RateLimitExhaustion"}
FOLDED = (
    'sum(rate(x_total{job="a"}[5m])) by (le) / on (job) y:z:rate5m > 0.5 and label_replace(z, "a", "b", "c", "d") > 1e3'
)


def test_the_alerts_of_the_deployment_guide_are_there() -> None:
    assert ALERTS.keys() >= OF_THE_GUIDE
    assert len(ALERTS) == len(rules("alerts.yml"))


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_what_it_means_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    said = alert["annotations"]
    assert said.keys() == {"summary", "description", "runbook"}
    assert said["runbook"] == f"docs/runbooks/{alert['alert']}.md"
    assert not re.search(r"\{\{ \$labels\.job", said["description"])
    assert said["description"].endswith(".")


@pytest.mark.parametrize("rule", [*rules("recording.yml"), *ALERTS.values()], ids=lambda rule: rule["expr"][:40])
def test_a_rule_asks_for_what_there_is_of_this_job_only(rule: dict[str, Any]) -> None:
    assert asked(rule["expr"])
    assert unknown(rule["expr"]) == set()
    for metric in asked(rule["expr"]):
        selected = re.findall(rf"\b{metric}(\{{[^}}]*\}})?", rule["expr"])
        assert ":" in metric or all('job="metrics-service"' in each for each in selected), metric


def test_what_an_expression_asks_for_is_read_from_it() -> None:
    assert asked(FOLDED) == {"x_total", "y:z:rate5m", "z"}
    assert unknown("no_such_metric > 0") == {"no_such_metric"}
    assert unknown("event_loop_delay_seconds_bucket") == set()


def test_each_alert_has_its_page_and_each_page_its_alert() -> None:
    assert {path.stem for path in RUNBOOKS} == ALERTS.keys()


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_page_has_what_is_needed_at_night(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.stem}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["What is at stake", "How to see more", "What to do"]
    for query in blocks(path, "promql"):
        assert [unknown(line) for line in query.splitlines()] == [set()] * len(query.splitlines())


def test_every_file_that_the_page_on_monitoring_names_is_there() -> None:
    named = set(re.findall(r"\bdeploy/(?:prometheus|grafana)[\w/.-]*\w", SHOWN.read_text(encoding="utf-8")))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_rules_of_the_operator_are_made_as_shown() -> None:
    lines = [line for text in blocks(SHOWN, "sh") for line in text.splitlines() if "PrometheusRule" in line]
    for line, file in zip(lines, ("recording.yml", "alerts.yml"), strict=True):
        command = line.removesuffix(" | kubectl apply -f -")
        made = yaml.safe_load(subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=True).stdout)  # noqa: S602
        assert made["kind"] == "PrometheusRule"
        assert [rule for group in made["spec"]["groups"] for rule in group["rules"]] == rules(file)
