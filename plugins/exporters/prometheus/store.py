"""The newest value of every series that is shown, and why others are not."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from plugins.exporters.prometheus.family import RESERVED_LABELS, Family, Series
from plugins.exporters.prometheus.names import label_text, label_value, metric_name
from plugins.exporters.prometheus.points import READERS, Unshowable, kind_of, points_of

POINTS_AT_A_TIME = 250
"""About a millisecond of work, so that nobody who pushes waits for more."""
MAX_LABELS = 64
MAX_LABEL_BYTES = 16 * 1024
MAX_STREAMS = 20_000
MAX_REMEMBERED = 10_000
"""How many series that are set aside are known as such, so that each is counted once; further ones are counted by points."""
MAX_LINES = 100
"""In the log, about what is set aside, however many there are."""

Attributes = tuple[tuple[str, str | bytes], ...]
Pairs = tuple[tuple[str, str], ...]


@dataclass
class Stream:
    """One metric of one resource and scope. `series` holds None for what is set aside."""

    name: str
    kind: str
    description: str
    resource: Pairs
    refusal: str | None = None
    series: dict[Attributes, Series | None] = field(default_factory=dict)


class Store:
    """What has been exported, ready to be shown."""

    def __init__(self, own_service: str, max_bytes: int, log: logging.Logger) -> None:
        self.families: dict[str, Family] = {}
        self.set_aside: Counter[str] = Counter()
        """How many series are not shown, by reason."""
        self.size = 0
        """How many bytes all lines take at the most."""
        self.count = 0
        """How many series there are."""
        self._own_service = own_service
        self._max_bytes = max_bytes
        self._log = log
        self._streams: dict[tuple[Any, ...], Stream] = {}
        self._claimed: set[str] = set()
        self._changed: list[Series] = []
        self._remembered = 0
        self._named: set[tuple[str, str]] = set()

    def take_changed(self) -> list[Series]:
        """The series whose lines are to be written anew, each once."""
        changed, self._changed = self._changed, []
        for series in changed:
            series.changed = False
        return changed

    async def take(self, request: ExportMetricsServiceRequest) -> None:
        """Take the points in, the last of each series counts. Lets others run about every millisecond."""
        for taken, (stream, point) in enumerate(self._points(request), 1):
            self._take_point(stream, point)
            if taken % POINTS_AT_A_TIME == 0:
                await asyncio.sleep(0)

    def _points(self, request: ExportMetricsServiceRequest) -> Iterator[tuple[Stream, Any]]:
        for resource in request.resource_metrics:
            resource_key = resource.resource.SerializeToString()
            for scope in resource.scope_metrics:
                scope_key = scope.scope.SerializeToString()
                for metric in scope.metrics:
                    stream = self._stream((resource_key, scope_key), resource.resource, metric)
                    for point in points_of(metric):
                        yield stream, point

    def _stream(self, origin: tuple[bytes, bytes], resource: Resource, metric: Metric) -> Stream:
        refusal = None
        try:
            kind = kind_of(metric)
        except Unshowable as reason:
            kind, refusal = "", str(reason)
        key = (*origin, metric.name, metric.unit, kind, refusal)
        stream = self._streams.get(key)
        if stream is None:
            name = metric_name(metric.name, metric.unit, counter=kind == "counter")
            if name is None:
                refusal = "without a name, or with one that is too long"
            stream = Stream(name or metric.name, kind, metric.description, self._resource_labels(resource), refusal)
            if len(self._streams) < MAX_STREAMS:
                self._streams[key] = stream
            else:
                stream.refusal = "of too many metrics"
        return stream

    def _resource_labels(self, resource: Resource) -> Pairs:
        """Whose metrics they are; nothing for those that this service makes: the scrape's own job names it."""
        found = {each.key: label_value(each.value) for each in resource.attributes}
        service, namespace = found.get("service.name", ""), found.get("service.namespace", "")
        if service in ("", self._own_service):
            return ()
        job = f"{namespace}/{service}" if namespace else service
        return (("job", job), ("instance", found.get("service.instance.id", "")))

    def _take_point(self, stream: Stream, point: Any) -> None:
        key = tuple(
            [(each.key, each.value.string_value or each.value.SerializeToString()) for each in point.attributes]
        )
        series = stream.series.get(key)
        if series is None and key in stream.series:
            return
        try:
            if series is None:
                series = stream.series[key] = self._admit(stream, point)
            else:
                self._update(stream, key, series, point)
        except Unshowable as reason:
            self._put_aside(stream, key, series, str(reason))

    def _update(self, stream: Stream, key: Attributes, series: Series, point: Any) -> None:
        updated = READERS[stream.kind](series.family, series, series.labels, point)
        if updated is not series:  # it has more lines than before
            self._make_room(updated.size - series.size)
            stream.series[key] = series.family.series[series.labels] = updated
        self._note_change(updated)

    def _admit(self, stream: Stream, point: Any) -> Series:
        if stream.refusal is not None:
            raise Unshowable(stream.refusal)
        family = self.families.get(stream.name) or Family(stream.name, stream.kind, stream.description)
        is_new = stream.name not in self.families
        if family.kind != stream.kind or (is_new and not family.claims.isdisjoint(self._claimed)):
            raise Unshowable("under a name that another metric has")
        attributes = [(each.key, label_value(each.value)) for each in point.attributes]
        own = {name for name, _ in attributes}
        attributes += [(name, value) for name, value in stream.resource if name not in own]
        labels, count = label_text(attributes, RESERVED_LABELS.get(stream.kind))
        if count > MAX_LABELS or len(labels.encode()) > MAX_LABEL_BYTES:
            raise Unshowable("with too many labels, or too long ones")
        if labels in family.series:
            raise Unshowable("with the labels of another series")
        series = READERS[stream.kind](family, None, labels, point)
        self._make_room(series.size)
        if is_new:
            self.families[stream.name] = family
            self._claimed |= family.claims
        family.series[labels] = series
        self.count += 1
        self._note_change(series)
        return series

    def _make_room(self, size: int) -> None:
        if self.size + size > self._max_bytes:
            raise Unshowable("beyond max_bytes")
        self.size += size

    def _note_change(self, series: Series) -> None:
        if not series.changed:
            series.changed = True
            self._changed.append(series)

    def _put_aside(self, stream: Stream, key: Attributes, series: Series | None, reason: str) -> None:
        """Count it, and remember that it was, if it never was shown."""
        self.set_aside[reason] += 1
        if series is None and self._remembered < MAX_REMEMBERED:
            self._remembered += 1
            stream.series[key] = None
        self._name_once(stream.name, reason)

    def hide(self, family: Family) -> None:
        """Show nothing of this family any more: the service itself has something of that name."""
        family.hidden = True
        reason = "under a name of the service's own telemetry"
        self.set_aside[reason] += len(family.series)
        self._name_once(family.name, reason)

    def _name_once(self, name: str, reason: str) -> None:
        """Say in the log that series of that name are not shown, and why."""
        if (name, reason) not in self._named and len(self._named) < MAX_LINES:
            self._named.add((name, reason))
            self._log.warning("series of %.100r are not shown: %s", name, reason)
