"""What each outcome is in HTTP. Nobody else in the service knows a status code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline import (
    Conflict,
    Context,
    Forbidden,
    Invalid,
    Malformed,
    Outcome,
    Overloaded,
    RateLimited,
    Refusal,
    TooLarge,
    Unauthenticated,
    Unsupported,
    mask,
    new_request_id,
)
from plugins.receivers.http.body import Gone, TooSlow

Headers = list[tuple[bytes, bytes]]

_STATUS: dict[type[Refusal], int] = {
    Malformed: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    TooSlow: 408,
    Gone: 408,
    Conflict: 409,
    TooLarge: 413,
    Unsupported: 415,
    Invalid: 422,
    RateLimited: 429,
    Overloaded: 503,
}

_CREDENTIALS = {b"x-api-key": "X-API-Key", b"authorization": "Authorization"}
MAX_REQUEST_ID = 100
_encode = msgspec.json.Encoder().encode


class _MetricsAnswer(msgspec.Struct, omit_defaults=True):
    status: str
    accepted: int
    rejected: int
    errors: Sequence[str]
    request_id: str
    warnings: Sequence[str] = ()


def make_context(headers: dict[bytes, bytes], peer: str, *, scope: str | None, cost: int = 1) -> Context:
    """The context of a request: its id, the client's own if it sent a decent one, and the key it presented."""
    own = headers.get(b"x-request-id")
    request_id = None
    if own is not None and 0 < len(own) <= MAX_REQUEST_ID:
        text = own.decode("latin-1")
        request_id = text if text.isascii() and text.isprintable() else None
    return Context(request_id or new_request_id(), credential=_credential(headers), scope=scope, cost=cost, peer=peer)


def check_credentials(headers: Mapping[bytes, bytes], lines: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise `Malformed` if a header that says whose request it is comes twice: a proxy in front may have looked at the other one."""
    if len(headers) == len(lines):  # no name is there twice
        return
    names = [name for name, _ in lines]
    for name, shown in _CREDENTIALS.items():
        if names.count(name) > 1:
            raise Malformed(f"{shown} must not be there twice")


def _credential(headers: dict[bytes, bytes]) -> str | None:
    key = headers.get(b"x-api-key")
    if key is None:
        scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
        key = rest.strip() if scheme.lower() == b"bearer" else None
    return key.decode("latin-1") if key else None


def context_headers(context: Context) -> Headers:
    """What every answer carries: the request's id, and the state of the caller's limit once it is known."""
    headers = [(b"x-request-id", context.request_id.encode())]
    if context.caller is not None:
        bucket = context.caller.bucket
        headers.append((b"x-ratelimit-limit", b"%d" % bucket.limit))
        headers.append((b"x-ratelimit-remaining", b"%d" % bucket.available()))
    return headers


def metrics_answer(outcome: Outcome) -> bytes:
    """The body for a push of which something was accepted."""
    status = "partial" if outcome.rejected else "success"
    answer = _MetricsAnswer(
        status, outcome.accepted, outcome.rejected, outcome.errors, outcome.request_id, outcome.warnings
    )
    return _encode(answer)


def refusal_answer(refusal: Refusal, context: Context) -> tuple[int, bytes, Headers]:
    """Status, body and headers for a request that was refused."""
    status = next((_STATUS[each] for each in type(refusal).__mro__ if each in _STATUS), 400)
    headers: Headers = []
    if isinstance(refusal, RateLimited | Overloaded):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(refusal.retry_after))))
    if isinstance(refusal, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(refusal, Invalid) and context.rejected:
        errors = context.listed_errors()
        return status, _encode(_MetricsAnswer("error", 0, context.rejected, errors, context.request_id)), headers
    detail: Any = list(refusal.details) if isinstance(refusal, Invalid) and refusal.details else mask(str(refusal))
    return status, error_body(status, detail, context.request_id), headers


def error_body(status: int, detail: Any, request_id: str) -> bytes:
    """The body of every error that is not a metrics answer."""
    return _encode({"detail": detail, "status_code": status, "request_id": request_id})
