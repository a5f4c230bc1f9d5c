"""Reading a scrape: with the parsers of Prometheus' own client, and line by line with a grammar that allows no more than it must."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from plugins.exporters.prometheus.exposition import Format

Sample = tuple[str, frozenset[tuple[str, str]]]
"""The name of a sample and its labels."""
Samples = dict[Sample, float]

_PLAIN = r'[^\\"\x00-\x1f\x7f-\x9f\u2028\u2029]'
_METRIC = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = rf'(?!__)[a-zA-Z_][a-zA-Z0-9_]*="(?:{_PLAIN}|\\[\\"n])*"'
_NUMBER = r"NaN|[+-]Inf|-?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?"
_SAMPLE = re.compile(rf"(?P<name>{_METRIC})(?:\{{(?P<labels>{_LABEL}(?:,{_LABEL})*)\}})? (?P<value>{_NUMBER})")
_TYPE = re.compile(rf"# TYPE {_METRIC} (?:counter|gauge|histogram|summary)")
_HELP = {
    Format.TEXT: re.compile(rf'# HELP {_METRIC} (?:{_PLAIN}|"|\\[\\n])+'),
    Format.OPENMETRICS: re.compile(rf'# HELP {_METRIC} (?:{_PLAIN}|\\[\\n"])+'),
}
_ONE_LABEL = re.compile(r'([a-zA-Z0-9_]+)="((?:[^\\"]|\\.)*)"')
_FAMILIES: dict[Format, Callable[[str], Iterable[Any]]] = {
    Format.TEXT: text_families,
    Format.OPENMETRICS: openmetrics_families,
}


def read(pieces: Sequence[bytes], format: Format) -> Samples:
    """Every sample. Fails on what either reader takes for wrong, on a sample that is there twice, and where they differ."""
    text = b"".join(pieces).decode()
    by_lines = _read_lines(text, format)
    by_parser: Samples = {}
    for family in _FAMILIES[format](text):
        for sample in family.samples:
            by_parser[(sample.name, frozenset(sample.labels.items()))] = sample.value
    assert [(key, str(float(value))) for key, value in by_parser.items()] == [
        (key, str(value)) for key, value in by_lines.items()
    ]
    return by_lines


def _read_lines(text: str, format: Format) -> Samples:
    found: Samples = {}
    *lines, last = text.split("\n")
    assert last == "", "the last line does not end"
    if format is Format.OPENMETRICS:
        assert lines.pop() == "# EOF"
    for line in lines:
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            assert _TYPE.fullmatch(line) or _HELP[format].fullmatch(line), f"{line!r} is no line"
            continue
        pairs = _ONE_LABEL.findall(sample["labels"] or "")
        labels = {name: re.sub(r"\\(.)", _unescape, value) for name, value in pairs}
        assert len(labels) == len(pairs), f"a label twice: {line!r}"
        key = (sample["name"], frozenset(labels.items()))
        assert key not in found, f"{line!r} is there twice"
        found[key] = float(sample["value"])
    return found


def _unescape(escape: re.Match[str]) -> str:
    return "\n" if escape[1] == "n" else escape[1]
