"""What is left of the keys' rate limits: for the client that asks for its own, and for the telemetry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter

from pipeline import Access, Caller, Instrument, InstrumentKind, Reading, Request, Response, Route, TokenBucket

SHOWN_KEYS = 1_000
"""How many keys the telemetry shows, those that were used last."""


def limit_route() -> Route:
    """`GET /rate-limit`, which costs nothing."""
    summary = "The rate limit of the key that asks, and what is left of it"
    return Route("GET", "/rate-limit", Access.KEY, _rate_limit, summary, cost=0)


async def _rate_limit(request: Request) -> Response:
    """`available_tokens` are whole ones; `reset_time_seconds`, until the bucket is full, is rounded up."""
    caller = request.context.caller
    assert caller is not None, "a route with Access.KEY is called with a key only"
    bucket = caller.bucket
    return Response(
        {
            "service": caller.service,
            "rate_limit": bucket.limit,
            "available_tokens": math.floor(bucket.available()),
            "reset_time_seconds": math.ceil(bucket.seconds_until_full),
        }
    )


def limit_instruments(callers: Callable[[], Iterable[Caller]]) -> Sequence[Instrument]:
    """What is left of every limit. An alert is best on the share that is left, since limits differ."""

    def read(of_bucket: Callable[[TokenBucket], float]) -> list[Reading]:
        return [({"service": each.service, "key": each.key_id}, of_bucket(each.bucket)) for each in callers()]

    return [
        Instrument(
            name,
            InstrumentKind.GAUGE,
            f"{what} of a key that is good, of the {SHOWN_KEYS} that were used last.",
            ("service", "key"),
            partial(read, of_bucket),
        )
        for name, what, of_bucket in (
            ("rate_limit_available_tokens", "Requests that are left now", TokenBucket.available),
            ("rate_limit_capacity_tokens", "Requests a minute", attrgetter("limit")),
        )
    ]
