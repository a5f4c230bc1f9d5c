"""What flows a second: the samples of two scrapes, and the counters' rates between them."""

from __future__ import annotations

from io import StringIO

from prometheus_client.parser import text_fd_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""

_PREFIXES = ("otelcol_", "receiver_", "processor_", "exporter_", "journal_", "http_request", "prometheus_")
"""Of the service's own telemetry. What else a scrape holds, up to megabytes of it, need not be parsed."""
_COUNTERS = ("_total", "_sum", "_count")


def read_samples(text: str) -> Samples:
    """The service's own telemetry in a scrape, in the order in which it stands there.

    Raises `ValueError` or `IndexError`, as the parser does, if it cannot be read.
    """
    # Not splitlines: a label's value may hold what only that takes for the end of a line.
    lines = [line for line in text.split("\n") if line.startswith(_PREFIXES) and "_bucket{" not in line]
    families = text_fd_to_metric_families(StringIO("\n".join(lines)))
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def rates(before: Samples, after: Samples, seconds: float) -> Samples:
    """How much each counter of the later scrape grew a second; `seconds` lie between the two.

    One that was not there before, or that went back since the service was restarted, grew from zero.
    """
    grown: Samples = {}
    for key, value in after.items():
        if key[0].endswith(_COUNTERS):
            earlier = before.get(key, 0.0)
            grown[key] = (value - earlier if value >= earlier else value) / seconds
    return grown


def by_label(samples: Samples, name: str, label: str, **where: str) -> dict[str, float]:
    """The sums of the samples of that name by the values of a label; of those only that have the labels `where`."""
    sums: dict[str, float] = {}
    for (each, labels), value in samples.items():
        if each == name and labels >= set(where.items()):
            key = dict(labels).get(label, "")
            sums[key] = sums.get(key, 0.0) + value
    return sums


def total(samples: Samples, name: str, **where: str) -> float | None:
    """The sum of the samples of that name with these labels; None if there are none."""
    return by_label(samples, name, "", **where).get("")
