"""Every query of every panel, and of every variable, gives data from a real Prometheus that scrapes the real service under load."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.traffic import RATE_LIMIT, SMALL, configuration, disturb, load, refusing, use_up
from tests.promql import PROMETHEUS, asked, rules
from tests.running import free_port, process
from tests.test_alerts import RUNBOOKS
from tests.test_dashboards import DASHBOARDS, panels
from tests.test_docs import blocks
from tests.test_prometheus import prometheus, wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(120)]

SECONDS = 15.0
"""Of load."""
RARE = {"prometheus_set_aside_series_total"}
"""What the load does not bring about: its panel shows 0."""
WITHOUT_DATA = {"MetricsServiceAbsent", "ConfigReloadFailed", "SeriesSetAside"}
"""Pages with a query that under this load has nothing to say."""
ELSE_NOTHING = re.compile(r" or (on \(\) )?vector\(0\)")
QUERIES = [
    pytest.param(panel, target, id=f"{name}-{panel['title']}-{target['refId']}")
    for name in DASHBOARDS
    for panel in panels(name)
    for target in panel["targets"]
]
VARIABLES = {
    (each["name"], each["query"]["query"])
    for one in DASHBOARDS.values()
    for each in one["templating"]["list"]
    if each["type"] == "query"
}


@dataclass
class Scraped:
    """A Prometheus that has seen the load, and when that ended, in seconds since 1970."""

    client: httpx.Client
    end: float

    def ask(self, path: str, **parameters: Any) -> Any:
        """What its API answers."""
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def series(self, expression: str, *, instant: bool) -> list[dict[str, Any]]:
        """The series of a query that hold a number, as the panel would ask for them."""
        query = filled(expression)
        if instant:
            result = self.ask("query", query=query, time=self.end)["result"]
            values = [(each["metric"], [each["value"]]) for each in result]
        else:
            result = self.ask("query_range", query=query, start=self.end - 8, end=self.end, step=2)["result"]
            values = [(each["metric"], each["values"]) for each in result]
        return [metric for metric, samples in values if any(not math.isnan(float(value)) for _, value in samples)]


def filled(query: str) -> str:
    """A query with the values that Grafana would put in for its variables, over intervals that fit the load."""
    known = {"__rate_interval": "8s", "__range": "15s", "job": "metrics-service", "instance": ".*", "service": ".*"}
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], query)


def scrape_configuration(target: int) -> dict[str, Any]:
    """The shipped one, every second, with labels as the Prometheus operator adds them to its targets."""
    read: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    read["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    read["rule_files"] = [str(PROMETHEUS / name) for name in read["rule_files"]]
    (job,) = read["scrape_configs"]
    labels = {"service": "metrics-service", "endpoint": "prometheus", "namespace": "mcp"}
    job |= {
        "scrape_interval": "1s",
        "honor_labels": True,
        "static_configs": [{"targets": [f"127.0.0.1:{target}"], "labels": labels}],
    }
    return read


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """The service under load, and a Prometheus that scraped it meanwhile."""
    folder, port = tmp_path_factory.mktemp("grafana"), free_port()
    variables = {"METRICS_API_KEY_SMALL": SMALL, "METRICS_RATE_LIMIT": str(RATE_LIMIT), "FLUSH_INTERVAL_SECONDS": "1"}
    with (
        refusing() as collector,
        process(
            folder,
            "--plugins-dir",
            str(folder / "plugins"),
            config=configuration(folder, collector, free_port()),
            OTEL_PROMETHEUS_PORT=str(port),
            **variables,
        ) as (_, base),
        prometheus(folder, port, scrape_configuration(port)) as server,
    ):
        wait_for(server, 'up{job="metrics-service"}', 1)
        caller = threading.Thread(target=load, args=(base, SECONDS))
        caller.start()
        disturb(base)
        use_up(base)
        caller.join()
        use_up(base)
        wait_for(server, 'count(ALERTS{alertname="RateLimitExhaustion"})', 1)
        with httpx.Client(base_url=server) as client:
            yield Scraped(client, time.time())


@pytest.mark.parametrize(("panel", "target"), QUERIES)
def test_a_query_of_a_panel_gives_data(scraped: Scraped, panel: dict[str, Any], target: dict[str, Any]) -> None:
    assert lacking_in(scraped, target) == ""


def lacking_in(scraped: Scraped, target: dict[str, Any]) -> str:
    """What is wrong with what a query gives, without the 0 that it may show for nothing."""
    expression, instant = target["expr"], target["instant"]
    if not scraped.series(expression, instant=instant):
        return f"no data: {filled(expression)}"
    bare = ELSE_NOTHING.sub("", expression)
    if asked(bare) & RARE:
        return ""
    found = scraped.series(bare, instant=instant)
    if not found:
        return f"nothing but the 0: {filled(bare)}"
    legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    unnamed = [each for each in found if not legend <= each.keys()]
    return f"{legend} are not all in {unnamed[0]}" if unnamed else ""


@pytest.mark.parametrize(
    ("expression", "legend"),
    [
        ("no_such_metric", ""),
        ("sum(rate(no_such_total[$__rate_interval])) or vector(0)", ""),
        ("sum by (reson) (otelcol_receiver_refused_requests_total)", "{{reason}}"),
        ("0 / (build_info - 1)", ""),
    ],
)
def test_a_query_that_gives_nothing_is_found(scraped: Scraped, expression: str, legend: str) -> None:
    assert lacking_in(scraped, {"expr": expression, "legendFormat": legend, "instant": True})


@pytest.mark.parametrize(("name", "query"), sorted(VARIABLES))
def test_the_query_of_a_variable_gives_values(scraped: Scraped, name: str, query: str) -> None:
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found
    values = scraped.ask(f"label/{found[2]}/values", **{"match[]": filled(found[1])})
    expected = {"job": {"metrics-service"}, "service": {"gateway", "registry", "slow", "test"}}
    assert set(values) == expected.get(name, set(values))
    assert values


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_the_queries_of_a_page_are_ones_that_prometheus_answers(scraped: Scraped, path: Path) -> None:
    for text in blocks(path, "promql"):
        for query in text.splitlines():
            found = scraped.series(query, instant=True)
            assert found or path.stem in WITHOUT_DATA, query


def test_every_rule_is_evaluated(scraped: Scraped) -> None:
    groups = scraped.ask("rules")["groups"]
    evaluated = {rule["name"]: rule for group in groups for rule in group["rules"]}
    names = [*(rule["alert"] for rule in rules("alerts.yml")), *(rule["record"] for rule in rules("recording.yml"))]
    assert sorted(evaluated) == sorted(names)
    assert {name: rule["lastError"] for name, rule in evaluated.items() if rule.get("lastError")} == {}
    for rule in rules("recording.yml"):
        assert scraped.series(rule["record"], instant=True), rule["record"]


def test_what_is_wrong_under_this_load_is_pending_or_firing(scraped: Scraped) -> None:
    alerts = {metric["alertname"] for metric in scraped.series("ALERTS", instant=True)}
    wrong = {"ExporterBlocked", "ExporterNotWorking", "DeadLetters", "FailedAuthentications", "RateLimitExhaustion"}
    wrong |= {"InternalError", "HighErrorRate", "EventLoopBlocked"}
    assert wrong - alerts == set(), json.dumps(sorted(alerts))
