"""Shows metrics to Prometheus: `GET /metrics` on a port of its own, as text or OpenMetrics.

A scrape shows every push that was answered before it. After a start it is answered 503 until what it shows is not behind what
was shown before. The smallest YAML that works:

    exporters:
      prometheus:
        host: 127.0.0.1
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from pipeline import Declaration, Signal, hookimpl
from plugins.exporters.prometheus.exporter import PrometheusConfig, PrometheusExporter
from plugins.exporters.prometheus.top import top


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `prometheus`."""
    return [Declaration("prometheus", PrometheusExporter, PrometheusConfig, takes=frozenset({Signal.METRICS}))]


@hookimpl
def declare_commands() -> Sequence[click.Command]:
    """Declares `metrics-service top`."""
    return [top]
