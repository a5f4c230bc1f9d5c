"""Walls around what components do: what one gets wrong is named and stays with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pipeline.blame import blame_for
from pipeline.component import Component
from pipeline.errors import Refusal, StartError

if TYPE_CHECKING:
    from pipeline.telemetry import Instrument

Given = ParamSpec("Given")
ReturnT = TypeVar("ReturnT")

FAULT = 70
"""EX_SOFTWARE of sysexits.h: a mistake in the code of a component."""
CANCEL_SECONDS = 1.0
"""How long something that hangs may take to end after it was cancelled."""
CONTAINED = (Exception, SystemExit)
"""What is kept from going on to others: nobody's plugin ends the process."""
AWAITED = (*CONTAINED, asyncio.CancelledError)
"""The same for what is awaited, which may let out that it cancelled something of its own; ask `is_ours` first."""

_log = logging.getLogger("service")


class ComponentFailed(Exception):
    """A component has raised what nobody expects of it, which is the cause. A mistake of ours, or of a plugin."""

    def __init__(self, component: Component[Any], raised: BaseException) -> None:
        super().__init__(f"{component.kind} {component.id} failed: {_one_line(raised)}")


def _one_line(error: BaseException) -> str:
    name, text = type(error).__name__, " ".join(str(error).split())
    return f"{name}: {text}" if text else name


@contextmanager
def starting(who: str, doing: str) -> Iterator[None]:
    """Whatever goes wrong inside is a `StartError`: the component's own, or one that names it and the line that raised."""
    try:
        yield
    except AWAITED as raised:
        if is_ours(raised):
            raise
        error: BaseException = raised
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            (error,) = error.exceptions
        if isinstance(error, StartError):
            raise error from None
        _log.debug("%s %s", who, doing, exc_info=raised)
        raise StartError(f"{who} {doing}: {_one_line(error)}, at {blame_for(error).place}", FAULT) from raised


def is_ours(error: BaseException) -> bool:
    """Whether it is that we cancel the task in which it was raised."""
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0


async def stopping(who: str, stop: Callable[[], Awaitable[None]], seconds: float | None = None) -> None:
    """Await `stop`, whatever it raises, and for no longer than that: then it is cancelled, and left behind if that does not
    help either."""

    async def logged() -> None:
        try:
            await stop()
        except CONTAINED:
            _log.exception("%s did not stop cleanly", who)

    task = asyncio.ensure_future(logged())
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        _log.error("%s did not stop within %g s", who, seconds)
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_SECONDS)


def instruments_of(component: Component[Any]) -> list[Instrument]:
    """What the component says of itself; nothing if it cannot even say what that is."""
    try:
        return list(component.instruments())
    except CONTAINED:
        _log.exception("left out the instruments of %s %s", component.kind, component.id)
        return []


def contained(
    component: Component[Any], method: Callable[Given, Awaitable[ReturnT]]
) -> Callable[Given, Awaitable[ReturnT]]:
    """The same method of a component, but what it raises, other than a `Refusal`, becomes a `ComponentFailed`."""

    async def called(*args: Given.args, **kwargs: Given.kwargs) -> ReturnT:
        try:
            return await method(*args, **kwargs)
        except Refusal:
            raise
        except AWAITED as error:
            if is_ours(error):
                raise
            raise ComponentFailed(component, error) from error

    return called
