"""What a scraper asks for: the format by `Accept`, gzip by `Accept-Encoding` (RFC 9110, section 12.5)."""

from __future__ import annotations

from collections.abc import Iterator

from plugins.exporters.prometheus.exposition import Format

_TYPES = {
    "application/openmetrics-text": Format.OPENMETRICS,
    "text/plain": Format.TEXT,
    "text/*": Format.TEXT,
    "*/*": Format.TEXT,
}


def _weighted(header: str) -> Iterator[tuple[str, float]]:
    """The alternatives of such a header with their weights; one whose weight cannot be read counts as refused."""
    for part in header.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if name:
            yield name, weight if 0 <= weight <= 1 else 0.0


def choose_format(accept: str) -> Format:
    """The format that weighs most; text where nothing is asked for, or nothing that there is."""
    weights = dict.fromkeys(Format, 0.0)
    for name, weight in _weighted(accept):
        if name in _TYPES:
            weights[_TYPES[name]] = max(weights[_TYPES[name]], weight)
    return Format.OPENMETRICS if weights[Format.OPENMETRICS] > weights[Format.TEXT] else Format.TEXT


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether gzip is asked for."""
    weights = dict(_weighted(accept_encoding))
    return weights.get("gzip", weights.get("*", 0.0)) > 0
