"""The smallest pipeline that a configuration may hold, so that one component can be configured beside it. It does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import (
    Buffer,
    ComponentConfig,
    Declaration,
    Delivery,
    Durability,
    Exporter,
    JournalSettings,
    Receiver,
    Signal,
    hookimpl,
)

NAME = "conformance_nop"
YAML = f"""\
receivers: {{{NAME}: }}
processors: {{{NAME}: }}
exporters: {{{NAME}: }}
service:
  pipelines:
    events: {{receivers: [{NAME}], processors: [{NAME}], exporters: [{NAME}]}}
"""


class NopReceiver(Receiver[ComponentConfig]):
    """Takes nothing in."""


class NopBuffer(Buffer[ComponentConfig]):
    """Keeps a journal below the working directory, if anybody ran it."""

    def journal_settings(self) -> JournalSettings:
        """See `Buffer.journal_settings`."""
        return JournalSettings(Path(NAME), 100, 30.0, 2**20, Durability.NONE)


class NopExporter(Exporter[ComponentConfig]):
    """Takes everything nowhere."""

    async def export(self, delivery: Delivery) -> None:
        """Done."""


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares one of each kind that a pipeline needs."""
    signals = frozenset(Signal)
    return [
        Declaration(NAME, NopReceiver, ComponentConfig, gives=signals),
        Declaration(NAME, NopBuffer, ComponentConfig, takes=signals),
        Declaration(NAME, NopExporter, ComponentConfig, takes=signals),
    ]
