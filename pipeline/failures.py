"""Limits unknown keys by address: past the limit, a request with another one is refused with `TooManyFailures`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from pipeline.addresses import network_of
from pipeline.bucket import TokenBucket
from pipeline.errors import RateLimited

ADDRESSES = 10_000
"""The most addresses that are remembered: those that failed last."""


class TooManyFailures(RateLimited):
    """Too many unknown keys came from this address."""

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(limit, retry_after)
        self.args = ("Too many unknown API keys from this address",)


class Failures:
    """Counts unknown keys by address. `limit` is in failures a minute, 0 for any number; the clock counts seconds."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, address: str) -> None:
        """Count one more unknown key from there. Raises `TooManyFailures` if there were too many. An empty address is not counted."""
        if not self._limit or not address:
            return
        network = network_of(address)
        bucket = self._buckets.get(network)
        if bucket is None:
            bucket = self._buckets[network] = TokenBucket(self._limit, self._clock)
            if len(self._buckets) > ADDRESSES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(network)
        try:
            bucket.take(1)
        except RateLimited as refusal:
            raise TooManyFailures(self._limit, refusal.retry_after) from None
