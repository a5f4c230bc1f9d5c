"""A key in memory."""

from __future__ import annotations

import math

from pipeline import Caller


class KnownKey:
    """`id` is that of its row, None for one that came from outside the database.

    `limit` is its own, if it has one, `good_until` a wall-clock time in seconds; the counters are what is not yet written.
    """

    __slots__ = ("caller", "digest", "good_until", "id", "last_used", "limit", "refused", "used")

    def __init__(self, id: int | None, digest: str, caller: Caller, good_until: float = math.inf) -> None:
        self.id = id
        self.limit: int | None = None
        self.digest = digest
        self.caller = caller
        self.good_until = good_until
        self.used = 0
        self.refused = 0
        self.last_used = 0.0

    def hold_to(self, limit: int) -> None:
        """Set another rate limit, in requests a minute."""
        if self.caller.bucket.limit != limit:
            self.caller.bucket.change_limit(limit)
