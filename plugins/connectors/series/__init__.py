"""Turns events into series: counters, histograms and gauges by type and labels, given on as cumulative OTLP metrics.

Counters survive `kill -9`: what the series add up to is saved with how far into the events that is, and the events behind
that stay in the journal until it is. The smallest YAML that works:

    connectors:
      series:
        types:
          auth_request:
            counter: mcp_auth_requests_total
            labels: [method, success]
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import Declaration, Signal, hookimpl
from plugins.connectors.series.config import SeriesConfig
from plugins.connectors.series.connector import SeriesConnector


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `series`."""
    events, metrics = frozenset({Signal.EVENTS}), frozenset({Signal.METRICS})
    return [Declaration("series", SeriesConnector, SeriesConfig, takes=events, gives=metrics)]
