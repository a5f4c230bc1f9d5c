"""Walls around what components do: what one gets wrong is named and stays with it."""

from __future__ import annotations

import asyncio
import logging
import math
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from pipeline.blame import blame_for
from pipeline.component import ASGIApp, Component
from pipeline.deadlines import Asked, Overdue, coroutine_of
from pipeline.errors import Overloaded, RateLimited, Refusal, StartError, TimedOut, in_a_line

if TYPE_CHECKING:
    from pipeline.telemetry import Instrument

Given = ParamSpec("Given")
ReturnT = TypeVar("ReturnT")

FAULT = 70
"""EX_SOFTWARE of sysexits.h: a mistake in the code of a component."""
CANCEL_SECONDS = 1.0
"""How long something that hangs may take to end after it was cancelled."""
CONTAINED = (Exception, SystemExit, KeyboardInterrupt, BaseExceptionGroup)
"""What is kept from going on to others: nobody's plugin ends the process. While the service runs, no signal raises `KeyboardInterrupt`
(`signals.listening`)."""
AWAITED = (*CONTAINED, asyncio.CancelledError)
"""The same for what is awaited, which may let out that it cancelled something of its own; ask `is_ours` first."""
CALLED = (*AWAITED, GeneratorExit)
"""The same for a function that is not awaited, where every exception is the plugin's own."""

_log = logging.getLogger("service")


class ComponentFailed(Exception):
    """A component has raised what nobody expects of it, which is the cause. A mistake of ours, or of a plugin."""

    def __init__(self, component: Component[Any], raised: BaseException) -> None:
        super().__init__(f"{component.kind} {component.id} failed: {in_a_line(raised)}")


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
        if isinstance(error, ComponentFailed):
            raise StartError(str(error), FAULT) from error
        if isinstance(error, Overdue):
            raise StartError(f"{who} {doing}: {error}", FAULT) from None
        _log.debug("%s %s", who, doing, exc_info=raised)
        raise StartError(f"{who} {doing}: {in_a_line(error)}, at {blame_for(error).place}", FAULT) from raised


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
    who = f"{component.kind} {component.id}"
    try:
        instruments = list(component.instruments())
    except CALLED:
        _log.exception("left out the instruments of %s", who)
        return []
    for one in instruments:
        if (wrong := _wrong_in(one)) is not None:
            _log.error("left out the instruments of %s: %s", who, wrong)
            return []
    return instruments


def _wrong_in(instrument: Any) -> str | None:
    from pipeline.telemetry import Instrument, InstrumentKind  # which imports this module

    if not isinstance(instrument, Instrument):
        return f"instruments returned {in_a_line(instrument)} (must return a sequence of Instrument)"
    types_of: dict[str, Any] = {
        "name": str,
        "kind": InstrumentKind,
        "description": str,
        "labels": tuple,
        "read": Callable,
    }
    for name, right in types_of.items():
        if not isinstance(value := getattr(instrument, name), right):
            return f"{in_a_line(instrument.name)}: {name} is {in_a_line(value)} (must be a {right.__name__})"
    if not _all_text(instrument.labels):
        return f"{in_a_line(instrument.name)}: labels is {in_a_line(instrument.labels)} (must be a tuple of str)"
    return None


def _all_text(values: tuple[Any, ...]) -> bool:
    return all(isinstance(each, str) for each in values)


def contained(asked: Asked, method: Callable[Given, Awaitable[ReturnT]]) -> Callable[Given, Awaitable[ReturnT]]:
    """A method of a component with a deadline. Raises `TimedOut` at the deadline.

    Any exception but a `Refusal` becomes a `ComponentFailed`.

    Written without `async`: a call that does not suspend then costs 0.4 µs more than one that is only contained.
    """

    @types.coroutine
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Generator[Any, Any, ReturnT]:
        try:
            coroutine = coroutine_of(method(*args, **kwargs))
            yielded = coroutine.send(None)
        except StopIteration as done:
            return cast("ReturnT", done.value)
        except BaseException as error:
            _raise_other(asked, error)
            raise
        try:
            return (yield from asked.calls.follow(asked, coroutine, yielded))
        except AWAITED as error:
            if not is_ours(error):
                _raise_other(asked, error)
            raise

    return called


def _raise_other(asked: Asked, raised: BaseException) -> None:
    """Raise what the caller gets in the place of this exception, if that is another one."""
    outcome = _outcome(asked, raised)
    try:
        if outcome is not raised:
            raise outcome from raised
    finally:
        del (
            outcome,
            raised,
        )  # the frame is in its traceback: a circle would keep the arguments of the call, such as a body of 10 MB


def _outcome(asked: Asked, raised: BaseException) -> BaseException:
    """The exception for the caller, given the one that the component raised."""
    if isinstance(raised, Overdue):
        return TimedOut(f"{asked} did not return from {asked.doing} within {raised.seconds:g} s")
    if not isinstance(raised, Refusal):
        return ComponentFailed(asked.component, raised)
    try:
        str(raised).encode()  # whatever a plugin derives from it, it can be shown to a client
        if isinstance(raised, Overloaded | RateLimited):
            math.ceil(raised.retry_after)
    except CALLED as error:
        return ComponentFailed(asked.component, error)
    return raised


def contained_app(component: Component[Any], app: ASGIApp) -> ASGIApp:
    """The application, without a deadline. An exception that would end the process becomes a `ComponentFailed`."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except Exception:
            raise
        except (*AWAITED, GeneratorExit) as error:
            if is_ours(error) or isinstance(error, GeneratorExit):
                raise
            raise ComponentFailed(component, error) from error

    return called


def asked_now(component: Component[Any], method: Callable[[], ReturnT]) -> ReturnT:
    """Call a method of a component that is not awaited. Any exception becomes a `ComponentFailed`."""
    try:
        return method()
    except CALLED as error:
        raise ComponentFailed(component, error) from error
