"""What the connector says of itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from pipeline import Instrument, InstrumentKind, Reading
from plugins.connectors.series.table import TypeTable

_BY_TYPE = ("connector", "metric_type")


def series_instruments(
    id: str, tables: Collection[TypeTable], unmapped: Callable[[], int], failed_emissions: Callable[[], int]
) -> Sequence[Instrument]:
    """How many series there are, and what was folded to keep them so many."""
    counter, gauge = InstrumentKind.COUNTER, InstrumentKind.GAUGE

    def by_type(what: str) -> Callable[[], Iterable[Reading]]:
        return lambda: [({"connector": id, "metric_type": table.type}, getattr(table, what)) for table in tables]

    def whole(read: Callable[[], int]) -> Callable[[], Iterable[Reading]]:
        return lambda: [({"connector": id}, read())]

    return [
        Instrument("series_active", gauge, "Sets of labels that have series.", _BY_TYPE, by_type("active")),
        Instrument(
            "series_folded_events_total",
            counter,
            "Events of which a label's value is shown as _other, since the label has too many.",
            _BY_TYPE,
            by_type("folded"),
        ),
        Instrument(
            "series_overflowed_events_total",
            counter,
            "Events that were added to the overflow series, since there are too many series.",
            _BY_TYPE,
            by_type("overflowed"),
        ),
        Instrument(
            "series_negative_events_total",
            counter,
            "Events whose negative value was not added to a counter or histogram.",
            _BY_TYPE,
            by_type("negative"),
        ),
        Instrument(
            "series_unmapped_events_total",
            counter,
            "Events of a type that the configuration makes no series of.",
            ("connector",),
            whole(unmapped),
        ),
        Instrument(
            "series_failed_emissions_total",
            counter,
            "Emissions that the next pipeline did not take; the counts are given on with a later one.",
            ("connector",),
            whole(failed_emissions),
        ),
    ]
