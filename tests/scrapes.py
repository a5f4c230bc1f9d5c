"""Reading what a scrape shows, with the parser of Prometheus' own client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]
"""The name of a sample and its labels."""


def samples(text: str, *, prefix: str = "mcp_") -> dict[Sample, float]:
    """Every sample of the metrics whose names begin so. Fails on what is no exposition, and on a sample that is there twice."""
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(prefix):
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
    return found


def total(text: str, name: str, **labels: str) -> float:
    """The sum of all samples of that name that have these labels, as PromQL's `sum(name{labels})`."""
    wanted = set(labels.items())
    return sum(value for (each, found), value in samples(text, prefix=name).items() if each == name and wanted <= found)
