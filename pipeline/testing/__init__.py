"""For the tests of plugins: a suite that checks what the engine relies on, and stand-ins for what a component meets.

It needs the extra `testing`. Nothing else of the service imports it.
"""

from pipeline.testing.conformance import (
    Conformance,
    ConnectorConformance,
    ExporterConformance,
    ExtensionConformance,
    ProcessorConformance,
    ReceiverConformance,
)
from pipeline.testing.doubles import (
    FailingConfig,
    FailingExporter,
    NopHost,
    RecordingConfig,
    RecordingExporter,
    SinkChain,
    event_batch,
    metric_batch,
)

__all__ = [
    "Conformance",
    "ConnectorConformance",
    "ExporterConformance",
    "ExtensionConformance",
    "FailingConfig",
    "FailingExporter",
    "NopHost",
    "ProcessorConformance",
    "ReceiverConformance",
    "RecordingConfig",
    "RecordingExporter",
    "SinkChain",
    "event_batch",
    "metric_batch",
]
