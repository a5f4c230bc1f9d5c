"""Whether a component can be used after one of its calls was cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from pipeline import Component
from pipeline.testing.remains import left_by
from pipeline.testing.stage import Stage, outcome, within
from pipeline.testing.steps import Stepped
from pipeline.testing.subject import check

MOST_AWAITS = 200
"""At which a call is cancelled; what waits more often has seen enough."""

Step = Callable[[Component[Any]], Coroutine[Any, Any, Any]]
Run = Callable[[Stepped], Awaitable[Stepped]]


class Cancelled(Stage):
    """Cancels a call at each of its awaits, each time of a new instance, and makes it once more."""

    async def cancel_everywhere(self, folder: Path, what: str, step: Step, run: Run) -> None:
        """Check that the call `step`, which is called `what`, can be cancelled anywhere by `run`."""
        homes = _folders(folder)
        usual = await self._usual(next(homes), what, step)
        for at in range(1, MOST_AWAITS + 1):
            left, (_, stepped) = await left_by(partial(self._cancelled, homes, at, what, step, run, usual))
            if not stepped.reached:
                break
            check(not left, f"{_named(what, at)} leaves behind {', '.join(left)} (give it back in finally)")

    async def _usual(self, home: Path, what: str, step: Step) -> type[Exception] | None:
        async with self.surroundings(home) as host, self.alive(home, host) as component:
            return await outcome(step(component), what)

    async def _cancelled(
        self, homes: Iterator[Path], at: int, what: str, step: Step, run: Run, usual: type[Exception] | None
    ) -> tuple[Component[Any], Stepped]:
        home, named = next(homes), _named(what, at)
        async with self.surroundings(home) as host, self.alive(home, host) as component:
            stepped = await within(run(Stepped(step(component), at)), f"{named} does not end")
            if stepped.reached:
                check(not stepped.swallowed, f"{named} goes on as if it was not (let CancelledError pass)")
                check(
                    not (stepped.cancelled and isinstance(stepped.error, Exception)),
                    f"{named} raises {stepped.error!r} (let CancelledError pass)",
                )
                again = await outcome(step(component), f"{named} cannot be done again: it")
                check(
                    again is usual,
                    f"{named} cannot be done again: it {_said(again)}, and without that it {_said(usual)}"
                    " (put right in finally what it began)",
                )
        return component, stepped


def _folders(inside: Path) -> Iterator[Path]:
    """New folders, as many as are asked for."""
    for number in count():
        folder = inside / str(number)
        folder.mkdir(parents=True)
        yield folder


def _named(what: str, at: int) -> str:
    return f"{what}, cancelled at its await number {at},"


def _said(outcome: type[Exception] | None) -> str:
    return f"raises {outcome.__name__}" if outcome else "succeeds"
