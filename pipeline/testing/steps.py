"""Cancels a coroutine at one of its awaits, the way the engine would: it waits for something real when it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import anyio


class Stepped:
    """Awaits a coroutine, counts its awaits, and asks for its cancellation when it comes to number `at`, from 1."""

    def __init__(self, step: Coroutine[Any, Any, Any], at: int) -> None:
        self.reached = False
        """Whether it came to that await."""
        self.cancelled = False
        """Whether the cancellation was thrown into it, there or later. It may be shielded."""
        self.error: BaseException | None = None
        """What it raised."""
        self._step = step
        self._at = at
        self._cancel: Callable[[], object] = lambda: None

    @property
    def swallowed(self) -> bool:
        """Whether it was cancelled and went on to its end as if it was not."""
        return self.cancelled and self.error is None

    async def run_in_scope(self) -> Stepped:
        """Run; cancelled as an anyio scope does it, which is how the engine ends an export: at every await, unless shielded."""

        async def run() -> None:
            with suppress(Exception), anyio.CancelScope() as scope:
                self._cancel = scope.cancel
                await self

        return await self._run(asyncio.create_task(run()))

    async def run_in_task(self) -> Stepped:
        """Run; cancelled as `asyncio.Task.cancel` does it, which is how a server ends a request: once."""

        async def run() -> None:
            with suppress(Exception):
                await self

        task = asyncio.create_task(run())
        self._cancel = task.cancel
        return await self._run(task)

    async def _run(self, task: asyncio.Task[None]) -> Stepped:
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        return self

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = self._step.send
        value: Any = None
        suspensions = 0
        while True:
            try:
                waited_for = resume(value)
            except StopIteration as end:
                return end.value
            except BaseException as error:
                self.error = error
                raise
            suspensions += 1
            if suspensions == self._at:
                self.reached = True
                # Not now, but once it really waits: then what it waits for is cancelled as well.
                asyncio.get_running_loop().call_soon(self._cancel)
            try:
                value = yield waited_for
                resume = self._step.send
            except BaseException as error:
                self.cancelled |= self.reached and isinstance(error, asyncio.CancelledError)
                resume, value = self._step.throw, error
