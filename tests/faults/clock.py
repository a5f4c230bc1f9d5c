"""An event loop whose time goes as fast as it can: where it would wait for the clock, the clock is put forward."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 0.001
"""Seconds that are waited for threads before the clock is put forward."""
THREADS = 5.0
"""The same while one of them is known to be at work."""


class FastSelector(selectors.DefaultSelector):
    """Waits for files and threads, and never long: the time that it should have waited is added to `ahead`."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        super().__init__()
        self.ahead = 0.0
        self._busy = busy

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector.select`."""
        patience = THREADS if self._busy() else PATIENCE
        if timeout is None or timeout <= patience:
            return super().select(timeout)
        if not (ready := super().select(patience)):
            self.ahead += timeout - patience
        return ready


class FastLoop(asyncio.SelectorEventLoop):
    """Its time is real time, and what was put forward. Threads see real time, and so does whoever asks `time`."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._fast = FastSelector(busy)
        super().__init__(self._fast)

    def time(self) -> float:
        """See `asyncio.AbstractEventLoop.time`."""
        return super().time() + self._fast.ahead


def run_fast(main: Coroutine[Any, Any, T], busy: Callable[[], bool]) -> T:
    """Run a coroutine in such a loop; `busy` says whether a thread is at work that the loop waits for."""
    with asyncio.Runner(loop_factory=lambda: FastLoop(busy)) as runner:
        return runner.run(main)
