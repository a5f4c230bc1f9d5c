"""What components had counted that others have taken the place of: their counters go on where they were."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.component import Component, Kind
from pipeline.containment import CONTAINED, instruments_of
from pipeline.telemetry import Instrument, InstrumentKind, Reading, Sums

_COUNTS = (InstrumentKind.COUNTER, InstrumentKind.HISTOGRAM)
_log = logging.getLogger("telemetry")


class Former:
    """The counts of replaced components, by whose place it was. Read beside the instruments of the new ones, they are added up."""

    def __init__(self) -> None:
        self._ending: dict[Component[Any], list[Instrument]] = {}
        self._ended: dict[tuple[Kind, str], dict[str, tuple[Instrument, Sums]]] = {}

    def instruments(self) -> Iterator[Instrument]:
        """All of it."""
        for ending in self._ending.values():
            yield from ending
        for counts in self._ended.values():
            for first, sums in counts.values():
                yield replace(first, read=partial(_readings, first.labels, sums))

    def replaced(self, component: Component[Any]) -> None:
        """Another has taken its place; it counts on until it is stopped."""
        self._ending[component] = [each for each in instruments_of(component) if each.kind in _COUNTS]

    def stopped(self, component: Component[Any]) -> None:
        """It counts no more: what it has counted is kept, and it is not."""
        counts = self._ended.setdefault((component.kind, component.id), {})
        for each in self._ending.pop(component, ()):
            first, sums = counts.setdefault(each.name, (replace(each, read=tuple), {}))
            try:
                for labels, value in each.read():
                    key = tuple(labels[name] for name in first.labels)
                    sums[key] = sums[key] + value if key in sums else value
            except CONTAINED:
                _log.exception("%s loses what it has counted so far", each.name)

    def gone(self, key: tuple[Kind, str]) -> None:
        """There is no component of that name any more."""
        self._ended.pop(key, None)


def _readings(labels: tuple[str, ...], sums: Sums) -> list[Reading]:
    return [(dict(zip(labels, values, strict=True)), value) for values, value in sums.items()]
