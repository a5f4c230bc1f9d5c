"""Looks at the event loop from a thread of its own, and names the component that blocks it.

All components share one loop: while one of them computes, or waits without `await`, nobody else is served. Ten times a second the
loop shows that it runs. The thread looks whether it did, and if not, at where it stands.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from pipeline.blame import UNKNOWN, Blame, blame_of
from pipeline.telemetry import Distribution, Instrument, InstrumentKind, Reading

LOOK_EVERY = 0.1
"""Seconds between two looks, the loop's and the thread's."""
BLOCKED_SECONDS = 0.5
"""How late the loop is when somebody is said to block it."""
LONG_SECONDS = 5.0
"""How late it is when that is logged although it still is blocked."""
SHOWN_SECONDS = 60.0
"""How long the state of a component says that it has blocked the loop."""

_DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_log = logging.getLogger("watchdog")


@dataclass
class _Blocks:
    """What one component has done to the loop: how often, for how long in all, and the last time."""

    count: int = 0
    total: float = 0.0
    seconds: float = 0.0
    place: str = ""
    ended: float = 0.0


class Watchdog:
    """Watches the loop that `run` runs on.

    The thread only writes `seen`, and everything else belongs to the loop, so there is nothing to lock.
    """

    def __init__(self) -> None:
        self.delay = Distribution(_DELAYS)
        """How late the loop was, at each of its looks."""
        self.seen: tuple[float, Blame] | None = None
        """Who the thread found to block the loop, with the time that it was waited for since."""
        self._due = 0.0
        self._ended = threading.Event()
        self._blocks: dict[str, _Blocks] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        self._due = monotonic() + LOOK_EVERY
        thread = self._begin_to_look()
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY)
                self._tick()
                if not thread.is_alive():
                    _log.error("the watchdog's thread has ended: started anew")
                    thread = self._begin_to_look()
        finally:
            self._ended.set()
            thread.join()

    def _begin_to_look(self) -> threading.Thread:
        thread = threading.Thread(target=self._look, args=(threading.get_ident(),), name="watchdog", daemon=True)
        thread.start()
        return thread

    def _tick(self) -> None:
        now = monotonic()
        late = max(0.0, now - self._due)
        self.delay.record(late)
        seen, due = self.seen, self._due
        self._due = now + LOOK_EVERY
        if seen is not None:
            self.seen = None
            if seen[0] == due:
                self._note(seen[1], late, now)

    def _note(self, who: Blame, seconds: float, now: float) -> None:
        _log.warning("%s blocked the event loop for %.1f s at %s", who.component, seconds, who.place)
        blocks = self._blocks.setdefault(who.component, _Blocks())
        blocks.count += 1
        blocks.total += seconds
        blocks.seconds, blocks.place, blocks.ended = seconds, who.place, now

    def _look(self, loop_thread: int) -> None:
        logged, looked = 0.0, monotonic()
        while not self._ended.wait(LOOK_EVERY):
            before, looked = looked, monotonic()
            due = self._due
            late = looked - due
            if late <= BLOCKED_SECONDS:
                continue
            seen = self.seen
            if seen is None or seen[0] != due:
                who = _who_blocks(loop_thread)
                # If this thread is late too, either a component let no other thread run, or the whole process stood still.
                if who.component != UNKNOWN or looked - before < BLOCKED_SECONDS:
                    self.seen = due, who
            elif late > LONG_SECONDS and logged != due:
                logged = due
                who = seen[1]
                _log.warning("%s has blocked the event loop for %.1f s until now at %s", who.component, late, who.place)

    def state_of(self, component: str) -> str | None:
        """What to say of a component, as `kind/id`, that has blocked the loop lately; None of others."""
        blocks = self._blocks.get(component)
        ago = monotonic() - blocks.ended if blocks else SHOWN_SECONDS
        if blocks is None or ago >= SHOWN_SECONDS:
            return None
        return f"blocked the event loop for {blocks.seconds:.1f} s, {ago:.0f} s ago at {blocks.place}"

    def instruments(self) -> Sequence[Instrument]:
        """How late the loop is, and whose doing that was."""
        return [
            Instrument(
                "event_loop_delay_seconds",
                InstrumentKind.HISTOGRAM,
                "How late the event loop came to a task that wanted to run, ten times a second.",
                (),
                lambda: [({}, self.delay)],
            ),
            Instrument(
                "component_blocked_loop_total",
                InstrumentKind.COUNTER,
                "How often a component, `kind/id` or `unknown`, has kept the event loop from running for half a second or more.",
                ("component",),
                lambda: self._each(lambda blocks: blocks.count),
            ),
            Instrument(
                "component_blocked_loop_seconds_total",
                InstrumentKind.COUNTER,
                "For how long in all.",
                ("component",),
                lambda: self._each(lambda blocks: blocks.total),
            ),
        ]

    def _each(self, value: Callable[[_Blocks], float]) -> Iterator[Reading]:
        return (({"component": component}, value(blocks)) for component, blocks in self._blocks.items())


def _who_blocks(loop_thread: int) -> Blame:
    """Who is at work in the thread of the loop."""
    return blame_of(sys._current_frames().get(loop_thread))
