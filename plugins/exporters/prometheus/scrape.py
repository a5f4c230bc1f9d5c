"""`GET /metrics`: who may scrape, in which form, and one rendering for all who ask at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import anyio

from pipeline import Failures, Malformed, RateLimited, Refusal, TokenBucket, Unauthenticated
from plugins.exporters.prometheus.accept import accepts_gzip, choose_format
from plugins.exporters.prometheus.exposition import Format, pack

Headers = list[tuple[bytes, bytes]]
SEND_BYTES = 64 * 1024
"""How much is handed to a connection at a time: what a scraper that never reads may hold."""
MAX_SENDING = 8
"""How many renderings may be on their way at a time, each held in memory for as long as somebody reads it."""
LINES_A_MINUTE = 60
"""Log lines for refused scrapes; more are not logged."""
FRESHEN_SECONDS = 1.0
"""How long a scrape waits for what has just been accepted, before it shows what there is."""


@dataclass
class _Shared:
    """The last rendering of a format; None if it might have been behind what was shown before a restart."""

    began: int = -1
    pieces: Sequence[bytes] | None = None
    packed: Sequence[bytes] | None = None


@dataclass
class Renderings:
    """Renders for all who ask: whoever comes while one is made waits for the next, and shares it with all who wait.

    `freshen` asks for what was accepted before and returns who is behind; `write` writes it all.
    """

    freshen: Callable[[], Awaitable[Sequence[str]]]
    write: Callable[[Format], Awaitable[Sequence[bytes]]]
    seconds: Callable[[float], None]
    """Told how long each rendering took."""
    is_ready: bool = False
    """Whether what is shown is known not to be behind what was shown before a restart."""
    _turns: itertools.count[int] = field(default_factory=itertools.count)
    _shared: dict[Format, _Shared] = field(default_factory=lambda: {format: _Shared() for format in Format})
    _rendering: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self, format: Format, *, gzip: bool) -> Sequence[bytes] | None:
        """A rendering that began after this call; None if it might be behind what was shown before a restart."""
        came = next(self._turns)
        shared = self._shared[format]
        async with self._rendering:
            if shared.began < came or (shared.pieces is None and self.is_ready):
                turn, began = next(self._turns), time.perf_counter()
                await self._freshen()
                pieces = await self.write(format) if self.is_ready else None
                # All at once and last: whoever asked may have gone meanwhile, and this is cancelled, and others wait.
                shared.began, shared.pieces, shared.packed = turn, pieces, None
                if pieces is not None:
                    self.seconds(time.perf_counter() - began)
            if gzip and shared.pieces is not None:
                shared.packed = shared.packed or await anyio.to_thread.run_sync(pack, shared.pieces)
                return shared.packed
            return shared.pieces

    async def _freshen(self) -> None:
        with anyio.move_on_after(FRESHEN_SECONDS):
            behind = await self.freshen()
            self.is_ready = self.is_ready or not behind


class ScrapeApp:
    """The ASGI application. `key` is None if anybody may scrape; `send_timeout` is in seconds; `failures` limits wrong keys by address."""

    def __init__(
        self, renderings: Renderings, key: str | None, send_timeout: float, failures: Failures, log: logging.Logger
    ) -> None:
        self._renderings = renderings
        self.key = key
        self.failures = failures
        self._log = log
        self._lines = TokenBucket(LINES_A_MINUTE)
        self.send_timeout = send_timeout
        self._sending: dict[anyio.CancelScope, Sequence[bytes]] = {}
        self.scrapes = 0
        """How many were answered."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] != "/metrics":
            await _say(send, 404, "not found (must be /metrics)")
        elif scope["method"] not in ("GET", "HEAD"):
            await _say(send, 405, "method not allowed (must be GET or HEAD)", (b"allow", b"GET, HEAD"))
        else:
            peer = scope["client"][0] if scope.get("client") else ""
            try:
                self._check(headers, [name.lower() for name, _ in scope["headers"]], peer)
            except Refusal as refusal:
                await self._refuse(refusal, peer, send)
                return
            await self._scrape(headers, send, with_body=scope["method"] == "GET")

    def _check(self, headers: dict[bytes, str], names: Sequence[bytes], peer: str) -> None:
        """Raise a `Refusal` unless the request presents the key, if one is needed."""
        if self.key is None:
            return
        for name, shown in ((b"x-api-key", "X-API-Key"), (b"authorization", "Authorization")):
            if names.count(name) > 1:
                raise Malformed(f"{shown} must not be there twice")
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        given = headers.get(b"x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        # Digests, so that the time does not depend on the length of the key either.
        if hmac.compare_digest(sha256(given.encode("latin-1")).digest(), sha256(self.key.encode()).digest()):
            return
        if given:
            self.failures.take(peer)
        raise Unauthenticated("a key is needed to scrape")

    async def _refuse(self, refusal: Refusal, peer: str, send: Any) -> None:
        status, headers = 400, []
        if isinstance(refusal, RateLimited):
            status, headers = 429, [(b"retry-after", b"%d" % max(1, math.ceil(refusal.retry_after)))]
        elif isinstance(refusal, Unauthenticated):
            status, headers = 401, [(b"www-authenticate", b"Bearer")]
        with contextlib.suppress(RateLimited):
            self._lines.take(1)
            self._log.info("Refused scrape", extra={"status": status, "reason": str(refusal), "peer": peer})
        await _say(send, status, str(refusal), *headers)

    async def _scrape(self, headers: dict[bytes, str], send: Any, *, with_body: bool) -> None:
        format, gzip = choose_format(headers.get(b"accept", "")), accepts_gzip(headers.get(b"accept-encoding", ""))
        pieces = await self._renderings.get(format, gzip=gzip)
        if pieces is None:
            reason = "starting: what there is may be behind what was shown before"
            await _say(send, 503, reason, (b"retry-after", b"1"))
            return
        self.scrapes += 1
        answer: Headers = [
            (b"content-type", format.value.encode()),
            (b"content-length", b"%d" % sum(map(len, pieces))),
            (b"vary", b"Accept, Accept-Encoding"),
        ]
        if gzip:
            answer.append((b"content-encoding", b"gzip"))
        await self._send(send, answer, pieces, with_body=with_body)

    async def _send(self, send: Any, headers: Headers, pieces: Sequence[bytes], *, with_body: bool) -> None:
        """Send the answer, unless the scraper does not read it: returning without the end closes its connection."""
        with anyio.move_on_after(self.send_timeout) as scope:
            self._sending[scope] = pieces
            try:
                self._give_up_on_slow_ones()
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for piece in pieces if with_body else ():
                    for first in range(0, len(piece), SEND_BYTES):
                        body = piece[first : first + SEND_BYTES]
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                del self._sending[scope]

    def _give_up_on_slow_ones(self) -> None:
        """Cancel the oldest while there are too many different renderings on their way."""
        for scope in list(self._sending):
            if len({id(pieces) for each, pieces in self._sending.items() if not each.cancel_called}) <= MAX_SENDING:
                return
            scope.cancel()


async def _say(send: Any, status: int, text: str, *more: tuple[bytes, bytes]) -> None:
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
