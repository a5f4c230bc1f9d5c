"""`POST /metrics`: the hot route, a bare ASGI callable without a framework in between."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import TYPE_CHECKING, Any

from pipeline import Chain, Context, Idempotency, Malformed, Outcome, Refusal, Unsupported
from plugins.receivers.http.answers import (
    Headers,
    check_credentials,
    context_headers,
    error_body,
    make_context,
    metrics_answer,
    refusal_answer,
)
from plugins.receivers.http.body import InFlight, Share, closes, read_body
from plugins.receivers.http.request_log import TURNED_AWAY, RequestLog
from plugins.receivers.http.traffic import Traffic

if TYPE_CHECKING:
    from plugins.receivers.http import HttpConfig

MAX_IDEMPOTENCY_KEY = 128
BODIES_IN_FLIGHT = 8
"""How many bodies of the largest size may be in memory at once, unless the configuration says how many bytes."""
_JSON = (b"content-type", b"application/json")


class Push:
    """Answers one push after the other: who asks, what is said, durable, answer."""

    def __init__(
        self, chain: Chain, config: HttpConfig, traffic: Traffic, log: logging.Logger, request_log: RequestLog
    ) -> None:
        self._chain = chain
        self._traffic = traffic
        self._limit = config.max_request_size
        self._seconds = config.body_timeout
        self._in_flight = InFlight(config.max_bytes_in_flight or BODIES_IN_FLIGHT * config.max_request_size)
        self._log = log
        self._request_log = request_log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        started = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        client = scope["client"]
        context = make_context(headers, client[0] if client else "", scope="ingest")
        request_id, caller = context.request_id, context.caller
        extra: Headers = []
        context.hold = hold = self._chain.hold()
        share = Share(self._in_flight, hold.bodies.take)
        outcome = None
        reason, unread = "", True
        try:
            check_credentials(headers, scope["headers"])
            await self._chain.admit(context)
            caller = context.caller
            self._chain.check_room()
            _check_content_type(headers.get(b"content-type"))
            body = await read_body(receive, headers, self._limit, self._seconds, share)
            unread = False
            if b"idempotency-key" in headers:
                context.idempotency = _idempotency(headers[b"idempotency-key"], body, context)
            receiving = self._chain.receive(body, context)
            del body  # it may take as much memory as its events, which are all that is needed from here on
            outcome = await receiving
            status, answer = 200, metrics_answer(outcome)
            if outcome.repeated:
                extra = [(b"idempotent-replay", b"true")]
        except Refusal as refusal:
            status, answer, extra = refusal_answer(refusal, context)
            reason = context.errors[0] if context.errors else str(refusal)
            if unread and closes(refusal, headers):
                extra.append((b"connection", b"close"))
        except Exception as error:
            # A plugin may have written into the context what no answer can hold.
            context.request_id, context.caller = request_id, caller
            self._log.exception("cannot process a request: %s", error, extra={"request_id": context.request_id})
            reason = "an error of ours"
            status, answer = 500, error_body(500, "Internal Server Error", context.request_id)
        finally:
            share.give_back()
            if context.hold is not None:  # else the journal gives it back once the commit is settled
                context.hold.give_back()
        length = (b"content-length", b"%d" % len(answer))
        start = {"type": "http.response.start", "status": status}
        await send({**start, "headers": [_JSON, length, *context_headers(context), *extra]})
        await send({"type": "http.response.body", "body": answer})
        self._traffic.count("POST", "/metrics", status, time.perf_counter() - started)
        self._log_request(status, reason, context, outcome, started)

    def _log_request(self, status: int, reason: str, context: Context, outcome: Outcome | None, started: float) -> None:
        if not self._request_log.is_due(started):
            return
        self._request_log.write(
            "Processed metrics" if outcome is not None else "Refused metrics",
            {
                "request_id": context.request_id,
                "service": context.caller.service if context.caller else None,
                "status": status,
                "accepted": outcome.accepted if outcome else 0,
                "rejected": context.rejected,
                "duration_ms": round((time.perf_counter() - started) * 1000, 1),
                **({"reason": reason} if reason else {}),
                **({"peer": context.peer} if status in TURNED_AWAY else {}),
            },
        )


def _check_content_type(value: bytes | None) -> None:
    """JSON in UTF-8; a missing header is taken for it (docs/api.md)."""
    if value is None or value == b"application/json":
        return
    kind, *parameters = (part.strip().lower() for part in value.split(b";"))
    charsets = [part.partition(b"=")[2].strip(b'" ') for part in parameters if part.startswith(b"charset")]
    if kind != b"application/json" or any(charset not in (b"utf-8", b"utf8") for charset in charsets):
        raise Unsupported("Content-Type must be application/json, in UTF-8")


def _idempotency(key: bytes, body: bytes, context: Context) -> Idempotency:
    text = key.decode("latin-1")
    if not 0 < len(text) <= MAX_IDEMPOTENCY_KEY or not text.isascii() or not text.isprintable():
        raise Malformed(f"Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable characters")
    owner = context.caller.owner if context.caller else ""
    return Idempotency(owner, text, hashlib.sha256(body).digest())
