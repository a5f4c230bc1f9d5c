"""The token bucket that a key's rate limit is kept in."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.errors import RateLimited


class TokenBucket:
    """Holds one minute's worth of tokens, starts full, refills continuously (docs/api.md).

    `limit` is in requests a minute. The clock counts seconds and must be monotonic, since a wall clock that is put back
    would lock the key out.
    """

    __slots__ = ("_at", "_clock", "_tokens", "limit")

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._tokens = float(limit)
        self._at = clock()

    def take(self, tokens: int) -> None:
        """Take that many tokens, or none and raise `RateLimited` with the seconds until they are there."""
        available = self.available()
        if available < tokens:
            missing = tokens - available
            raise RateLimited(self.limit, missing * 60 / self.limit if self.limit else 60.0)
        self._tokens = available - tokens

    def available(self) -> float:
        """The tokens that are there now."""
        now = self._clock()
        self._tokens = min(self.limit, self._tokens + (now - self._at) * self.limit / 60)
        self._at = now
        return self._tokens

    @property
    def seconds_until_full(self) -> float:
        """The time until the bucket holds a whole minute's worth again, in seconds."""
        return (self.limit - self.available()) * 60 / self.limit if self.limit else 0.0

    def change_limit(self, limit: int) -> None:
        """Set another limit; what was used stays used, so that a reload gives nobody a full bucket."""
        used = self.limit - self.available()
        self.limit = limit
        self._tokens = max(0.0, limit - used)
