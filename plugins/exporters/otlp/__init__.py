"""Forwards to a company's OTLP collectors, over HTTP or gRPC, at least once: metrics as they are, events as delta points.

Each one goes at its own pace, and nothing is given up while its collector is away. The smallest YAML that works:

    exporters:
      otlp:
        endpoint: https://collector.example.com:4318
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import Declaration, Signal, hookimpl
from plugins.exporters.otlp.config import OtlpConfig
from plugins.exporters.otlp.exporter import OtlpExporter


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `otlp`."""
    return [Declaration("otlp", OtlpExporter, OtlpConfig, takes=frozenset(Signal))]
