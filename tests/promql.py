"""What a PromQL expression asks for: the names of its metrics, and which of them there are."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"

_WORDS = {"and", "or", "unless", "offset", "bool", "on", "by", "without", "ignoring", "group_left", "group_right"}
_OF_PROMETHEUS = {"up", "ALERTS"}


def asked(expression: str) -> set[str]:
    """The metrics, and the series of rules, that an expression names."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]|\s*\()", bare)
    return set(names) - _WORDS


def unknown(expression: str) -> set[str]:
    """What an expression names and neither the documentation nor a recording rule has."""
    shown = documented()
    return {name for name in asked(expression) if name not in shown and _family(name) not in shown}


def _family(name: str) -> str:
    """What a histogram's samples belong to."""
    return re.sub(r"_(bucket|count|sum)$", "", name)


def documented() -> set[str]:
    """The metrics of docs/metrics.md, the series of docs/api.md, and what the recording rules make."""
    metrics = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    series = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("## Series")[2]
    recorded = {rule["record"] for rule in rules("recording.yml")}
    return {
        *re.findall(r"^\| `(\w+)` \|", metrics, re.MULTILINE),
        *re.findall(r"`(mcp_\w+)`", series),
        *recorded,
        *_OF_PROMETHEUS,
    }


def rules(file: str) -> list[dict[str, str]]:
    """The rules of that file of deploy/prometheus, of all its groups."""
    read = yaml.safe_load((PROMETHEUS / file).read_text(encoding="utf-8"))
    return [rule for group in read["groups"] for rule in group["rules"]]
