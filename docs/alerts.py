"""The page of the alerts, from the rules that Prometheus reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from docs.markdown import NOTE, table

ALERTS = Path(__file__).parents[1] / "deploy" / "prometheus" / "alerts.yml"


def alerts() -> str:
    """Every alert of deploy/prometheus/alerts.yml, with its page."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rows = [_row(rule) for group in groups for rule in group["rules"]]
    parts = [
        "# Alerts",
        NOTE,
        "What `deploy/prometheus/alerts.yml` has Prometheus watch; [monitoring](deploy/monitoring.md) says how to set it up. Each"
        " name leads to a page that says what is at stake and what to do. `critical`: data is refused or lost, or will be soon;"
        " `warning`: somebody should look today; `info`: to know.",
        table(["alert", "severity", "means", "for"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def _row(rule: dict[str, Any]) -> list[str]:
    name = rule["alert"]
    severity, said = rule["labels"]["severity"], rule["annotations"]["summary"]
    return [f"[{name}](runbooks/{name}.md)", f"`{severity}`", said, rule.get("for", "at once")]
