"""Holds every key to its rate limit.

    extensions:
      database:
        path: ./metrics.db
      api_keys:
        rate_limit: 1000
    processors:
      auth:
      rate_limit:

The limit and the bucket belong to the key, so all pipelines share them and a reload keeps them. It comes behind `auth`: a
request without a caller has no bucket and passes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline import Caller, ComponentConfig, Context, Declaration, Host, Processor, RateLimited, Signal, hookimpl

SECONDS_BETWEEN_LINES = 10.0


class RateLimitConfig(ComponentConfig):
    """There is nothing to choose: limits belong to keys and to the extension `api_keys`."""


class RateLimit(Processor[RateLimitConfig]):
    """Holds every key to its rate limit, before the body is read."""

    limits = True

    def __init__(self, id: str, config: RateLimitConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.clock = time.monotonic
        # Of each key: when it may next have a line in the log, and how many it was denied since the last. Losing
        # this in a reload costs one line, which is why a processor may keep it.
        self._quiet: dict[str, tuple[float, int]] = {}

    async def admit(self, context: Context) -> None:
        """Raises `RateLimited` if the caller's bucket does not hold what the request costs."""
        caller = context.caller
        if caller is None or context.cost <= 0:
            return
        try:
            caller.bucket.take(context.cost)
        except RateLimited as refusal:
            self._log_refusal(caller, refusal)
            raise

    def _log_refusal(self, caller: Caller, refusal: RateLimited) -> None:
        """One line a key and ten seconds: whoever is over the limit must not fill the log instead."""
        now = self.clock()
        until, suppressed = self._quiet.get(caller.key_id, (now, 0))
        if now < until:
            self._quiet[caller.key_id] = (until, suppressed + 1)
            return
        self._quiet[caller.key_id] = (now + SECONDS_BETWEEN_LINES, 0)
        self.log.warning(
            "rate limit of %d requests/minute exceeded by key %s of service %s (%d more refusals since the last such line)",
            refusal.limit,
            caller.key_id,
            caller.service,
            suppressed,
        )


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """The processor `rate_limit`, for both signals."""
    return [Declaration("rate_limit", RateLimit, RateLimitConfig, takes=frozenset(Signal))]
