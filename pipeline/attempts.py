"""Trying again, without a time limit: what one exporter's worker does until a delivery is taken or refused for good."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import anyio

from pipeline.containment import CONTAINED
from pipeline.errors import (
    Blocked,
    Overloaded,
    Permanent,
    RateLimited,
    Refusal,
    Retryable,
    ServiceError,
    in_a_line,
    text_of,
)
from pipeline.masking import mask

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
LONGEST_RETRY_AFTER = 300.0
"""Seconds; what another side asks for beyond that is not believed, lest one wrong answer hold up delivery for days."""


class Attempts:
    """The tries of one exporter, one after the other, and what became of the last."""

    def __init__(self, log: logging.Logger, failed: Callable[[], None]) -> None:
        self.failure: str | None = None
        """Why the last try failed; None while the exporter works."""
        self.failing_since = datetime.now(UTC)
        """The time of the first of the failures in a row; meaningless without a failure."""
        self.blocked: str | None = None
        """What a person has to mend before the next try can succeed, in a word or two; None if nothing."""
        self.failed_tries = 0
        self.stopping = False
        self.cancelled = False
        """Whether the try in hand is being cancelled from outside."""
        self._log = log
        self._failed = failed
        self._interrupted = asyncio.Event()

    def interrupt(self) -> None:
        """End the wait for the next try, and make `until_done` return."""
        self._interrupted.set()

    def resume(self) -> None:
        """What one was interrupted for is done."""
        if not self.stopping:
            self._interrupted.clear()

    def stop(self) -> None:
        """Let the try in hand end, and begin no other."""
        self.stopping = True
        self._interrupted.set()

    def begin_again(self) -> None:
        """After a stop, as if nothing had been tried yet."""
        self.stopping = self.cancelled = False
        self.failure = self.blocked = None
        self._interrupted.clear()

    def succeeded(self) -> None:
        """The exporter works."""
        if self.failure is not None:
            self._log.info("delivers again")
        self.failure = self.blocked = None

    async def until_done(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Try until it succeeds (true) or is interrupted (false). `Permanent` goes through."""
        backoff = FIRST_BACKOFF
        while not self._interrupted.is_set():
            try:
                await self.once(action)
            except Permanent:
                raise
            except Exception as raised:  # whatever a plugin raises, nothing may be lost
                error = raised
            else:
                return True
            self._note(error)
            await self._wait(backoff, error)
            backoff = min(backoff * 2, LONGEST_BACKOFF)
        return False

    async def once(self, action: Callable[[], Awaitable[None]]) -> None:
        """Try one time. Raises what the exporter means (`reason_of`)."""
        try:
            await action()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.cancelled or (task is not None and task.cancelling() > 0):
                raise
            # The exporter cancelled something of its own and let that out.
            raise Retryable("a task of its own was cancelled") from None
        except CONTAINED as raised:
            error = reason_of(raised)
            if error is raised:
                raise
            raise error from raised

    def _note(self, error: Exception) -> None:
        self.failed_tries += 1
        reason = text_of(error)
        if reason != self.failure:
            expected = isinstance(error, ServiceError)
            self._log.warning("cannot deliver, will try again: %s", reason, exc_info=None if expected else error)
        if self.failure is None:
            self.failing_since = datetime.now(UTC)
        self.failure = reason
        self.blocked = mask(error.reason) if isinstance(error, Blocked) else None
        self._failed()

    async def _wait(self, backoff: float, error: Exception) -> None:
        seconds = random.uniform(backoff / 2, backoff)  # noqa: S311 - spreads retries, keeps no secret
        asked = error.retry_after if isinstance(error, Retryable | Overloaded | RateLimited) else None
        seconds = max(seconds, min(asked or 0, LONGEST_RETRY_AFTER))
        with anyio.move_on_after(seconds):
            await self._interrupted.wait()


def reason_of(raised: BaseException) -> Exception:
    """What an exporter means: the one error of a task group, and for a connector, what the next pipeline's refusal is to us.

    An exception that would end the process becomes `Retryable`.
    """
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        (raised,) = raised.exceptions
    if not isinstance(raised, Exception):
        return Retryable(f"it raised {in_a_line(raised)}")
    if isinstance(raised, Refusal) and not isinstance(raised, Overloaded | RateLimited):
        return Permanent(f"the next pipeline refuses it: {raised}")
    return raised
