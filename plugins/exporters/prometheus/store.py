"""The newest value of every series that is shown, and why others are not."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from plugins.exporters.prometheus.family import RESERVED_LABELS, Family, Series
from plugins.exporters.prometheus.names import MAX_HELP, MAX_NAME, label_text, label_value, metric_name
from plugins.exporters.prometheus.points import READERS, Unshowable, kind_of, points_of

POINTS_AT_A_TIME = 25
HOLD_SECONDS = 0.001
"""How long points are taken, some at a time, before others run: a new series costs four times what a known one does."""
MAX_LABELS = 64
MAX_LABEL_BYTES = 16 * 1024
MAX_STREAMS = 20_000
MAX_REMEMBERED = 10_000
"""How many series that are set aside are known as such, so that each is counted once; further ones are counted by points."""
MAX_LINES = 100
"""In the log, about what is set aside, however many there are."""
OWN_NAME = "under a name of the service's own telemetry"

Attributes = tuple[tuple[str, str | bytes], ...]
"""The attributes of a point in the order of their keys, with values as they came: what tells series from each other."""
Pairs = tuple[tuple[str, str], ...]

_by_key = itemgetter(0)


@dataclass
class Stream:
    """One metric of one resource and scope. `refusal` says why no series of it can be shown."""

    id: int
    name: str
    kind: str
    description: str
    resource: Pairs
    refusal: str | None = None
    series: dict[Attributes, Series] = field(default_factory=dict)


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
        self.max_bytes = max_bytes
        """The most that all lines may take; what is shown already stays."""
        self._log = log
        self._streams: dict[tuple[Any, ...], Stream] = {}
        self._claimed: set[str] = set()
        self._changed: deque[Series] = deque()
        self._aside: dict[int, bool] = {}
        """The series of which something could not be shown, and whether nothing ever can. By hashes, since they may be large."""
        self._named: set[tuple[str, str]] = set()

    @property
    def changed(self) -> int:
        """How many series have lines that are to be written anew."""
        return len(self._changed)

    def render(self, most: int) -> None:
        """Write the lines of at most so many of them."""
        for _ in range(min(most, len(self._changed))):
            series = self._changed.popleft()
            series.changed = False
            series.render()

    async def take(self, request: ExportMetricsServiceRequest) -> None:
        """Take the points in, the last of each series counts. Lets others run about every millisecond."""
        began = time.perf_counter()
        for taken, (stream, point) in enumerate(self._points(request), 1):
            self._take_point(stream, point)
            if taken % POINTS_AT_A_TIME == 0 and time.perf_counter() - began > HOLD_SECONDS:
                await asyncio.sleep(0)
                began = time.perf_counter()

    def _points(self, request: ExportMetricsServiceRequest) -> Iterator[tuple[Stream, Any]]:
        for resource in request.resource_metrics:
            identity, labels = self._whose(resource.resource)
            for scope in resource.scope_metrics:
                origin = _digest([*identity, scope.scope.name])
                for metric in scope.metrics:
                    stream = self._stream(origin, labels, metric)
                    for point in points_of(metric):
                        yield stream, point

    def _whose(self, resource: Resource) -> tuple[Sequence[str | bytes], Pairs]:
        """What tells the resource from others, and the labels that say so; none for what this service makes itself: the
        scrape's own job names it."""
        found = {each.key: label_value(each.value) for each in resource.attributes}
        service, namespace = found.get("service.name", ""), found.get("service.namespace", "")
        instance = found.get("service.instance.id", "")
        # These three are an instance's identity, whatever else is said of it; without the third, everything is.
        identity = [namespace, service, instance] if service and instance else _everything(resource)
        if service in ("", self._own_service):
            return identity, ()
        job = f"{namespace}/{service}" if namespace else service
        return identity, (("job", job), ("instance", instance))

    def _stream(self, origin: bytes, labels: Pairs, metric: Metric) -> Stream:
        refusal = None
        try:
            kind = kind_of(metric)
        except Unshowable as reason:
            kind, refusal = "", str(reason)
        key = (origin, metric.name, metric.unit, kind, refusal)
        stream = self._streams.get(key)
        return stream if stream is not None else self._new_stream(key, labels, metric, kind, refusal)

    def _new_stream(
        self, key: tuple[Any, ...], labels: Pairs, metric: Metric, kind: str, refusal: str | None
    ) -> Stream:
        name = metric_name(metric.name, metric.unit, counter=kind == "counter")
        is_kept = len(self._streams) < MAX_STREAMS
        if name is None or len(metric.unit) > MAX_NAME:
            is_kept, refusal = False, "without a name, or with one that is too long"
        elif sum(len(value) for _, value in labels) > MAX_LABEL_BYTES:
            labels, refusal = (), "with too many labels, or too long ones"
        elif not is_kept:
            refusal = "of too many metrics"
        stream = Stream(hash(key), name or metric.name, kind, metric.description[:MAX_HELP], labels, refusal)
        if is_kept:
            self._streams[key] = stream
        return stream

    def _take_point(self, stream: Stream, point: Any) -> None:
        attributes = [
            (each.key, each.value.string_value or each.value.SerializeToString()) for each in point.attributes
        ]
        attributes.sort(key=_by_key)
        key = tuple(attributes)
        series = stream.series.get(key)
        try:
            if series is not None:
                self._update(stream, key, series, point)
            elif not self._aside.get(hash((stream.id, key))):
                stream.series[key] = self._admit(stream, key, point)
        except Unshowable as reason:
            self._put_aside(stream, key, reason)

    def _update(self, stream: Stream, key: Attributes, series: Series, point: Any) -> None:
        updated = READERS[stream.kind](series.family, series, series.labels, point)
        if updated is not series:  # it has other lines than before
            self._make_room(updated.size - series.size)
            updated.lines = series.lines  # until they are written anew: a scrape may be on its way
            stream.series[key] = series.family.series[series.labels] = updated
        self._note_change(updated)

    def _admit(self, stream: Stream, key: Attributes, point: Any) -> Series:
        if stream.refusal is not None:
            raise Unshowable(stream.refusal, for_good=True)
        family = self.families.get(stream.name) or Family(stream.name, stream.kind, stream.description)
        is_new = stream.name not in self.families
        if family.hidden:
            raise Unshowable(OWN_NAME, for_good=True)
        if family.kind != stream.kind or (is_new and not family.claims.isdisjoint(self._claimed)):
            raise Unshowable("under a name that another metric has", for_good=True)
        labels = self._labels(stream, key, point)
        if labels in family.series:
            raise Unshowable("with the labels of another series", for_good=True)
        series = READERS[stream.kind](family, None, labels, point)
        self._make_room(series.size + (family.header_size if is_new else 0))
        if is_new:
            self.families[stream.name] = family
            self._claimed |= family.claims
        family.series[labels] = series
        self.count += 1
        self._note_change(series)
        return series

    def _labels(self, stream: Stream, key: Attributes, point: Any) -> str:
        too_large = Unshowable("with too many labels, or too long ones", for_good=True)
        if _size(key) > MAX_LABEL_BYTES:
            raise too_large
        attributes = [(each.key, label_value(each.value)) for each in point.attributes]
        own = {name for name, _ in attributes}
        attributes += [(name, value) for name, value in stream.resource if name not in own]
        labels, count = label_text(attributes, RESERVED_LABELS.get(stream.kind))
        if count > MAX_LABELS or len(labels.encode()) > MAX_LABEL_BYTES:
            raise too_large
        return labels

    def _make_room(self, size: int) -> None:
        if self.size + size > self.max_bytes:
            raise Unshowable("beyond max_bytes", for_good=True)
        self.size += size

    def _note_change(self, series: Series) -> None:
        if not series.changed:
            series.changed = True
            self._changed.append(series)

    def _put_aside(self, stream: Stream, key: Attributes, reason: Unshowable) -> None:
        """Count the series, once if it can be remembered."""
        series = hash((stream.id, key))
        if series in self._aside:
            self._aside[series] |= reason.for_good
            return
        self.set_aside[str(reason)] += 1
        if len(self._aside) < MAX_REMEMBERED:
            self._aside[series] = reason.for_good
        self._name_once(stream.name, str(reason))

    def hide(self, family: Family) -> None:
        """Show nothing of this family any more: the service itself has something of that name."""
        family.hidden = True
        self.count -= len(family.series)
        self.set_aside[OWN_NAME] += len(family.series)
        self._name_once(family.name, OWN_NAME)

    def _name_once(self, name: str, reason: str) -> None:
        """Say in the log that series of that name are not shown, and why."""
        known = (name[:MAX_NAME], reason)
        if known not in self._named and len(self._named) < MAX_LINES:
            self._named.add(known)
            self._log.warning("series of %.100r are not shown: %s", name, reason)


def _size(key: Attributes) -> int:
    return sum(len(name) + len(value) for name, value in key)


def _everything(resource: Resource) -> list[str | bytes]:
    return sorted(each.SerializeToString() for each in resource.attributes)


def _digest(parts: Sequence[str | bytes]) -> bytes:
    """Stands for the parts in a key, however long they are."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
