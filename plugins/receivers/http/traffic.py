"""How many requests there were, and how long they took, for the service's own telemetry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline import Distribution, Instrument, InstrumentKind, Reading

UNMATCHED = "unmatched"
"""The endpoint of whatever no route has: nobody who makes up paths makes up labels."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "_OTHER"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Traffic:
    """Counts requests, by method, route and status."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[tuple[str, str], Distribution] = {}

    def count(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one request that was answered. Runs with every push."""
        key = (method, endpoint, status)
        if key in self._requests:
            self._requests[key] += 1
            self._seconds[method, endpoint].record(seconds)
        elif method in _METHODS or method == _OTHER:
            self._requests[key] = 1
            self._seconds.setdefault((method, endpoint), Distribution(_SECONDS)).record(seconds)
        else:
            self.count(_OTHER, endpoint, status, seconds)

    def instruments(self) -> Sequence[Instrument]:
        """What it has counted."""
        return [
            Instrument(
                "http_requests_total",
                InstrumentKind.COUNTER,
                "Requests that were answered, by the route that they matched.",
                ("method", "endpoint", "status"),
                self._read_requests,
            ),
            Instrument(
                "http_request_duration_seconds",
                InstrumentKind.HISTOGRAM,
                "Time from the header of a request to its answer.",
                ("method", "endpoint"),
                self._read_seconds,
            ),
        ]

    def _read_requests(self) -> Iterator[Reading]:
        for (method, endpoint, status), count in self._requests.items():
            yield {"method": method, "endpoint": endpoint, "status": str(status)}, count

    def _read_seconds(self) -> Iterator[Reading]:
        for (method, endpoint), seconds in self._seconds.items():
            yield {"method": method, "endpoint": endpoint}, seconds
