"""Who sends keys that nobody has: so many a minute from one address, and what else comes from there with one is refused unseen."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from pipeline.addresses import network_of
from pipeline.bucket import TokenBucket
from pipeline.errors import RateLimited

ADDRESSES = 10_000
"""Of how many addresses is remembered what they did; of more, those that failed last."""


class TooManyFailures(RateLimited):
    """Too many unknown keys came from the address that this one came from."""

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(limit, retry_after)
        self.args = ("Too many unknown API keys from this address",)


class Failures:
    """Unknown keys by the address that they came from. `limit` is in failures a minute, 0 for any number; the clock counts seconds."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, address: str) -> None:
        """Count one more unknown key from there. Raises `TooManyFailures` instead if there were too many; `""` is nobody's address."""
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
