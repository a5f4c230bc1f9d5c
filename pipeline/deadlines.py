"""Calls of plugin code: records each in progress, reports one that takes long, and cancels it at its deadline.

A call that never suspends costs nothing more. One that suspends is recorded, and `Calls.run` checks the recorded calls once a second.
A coroutine runs in the task of its caller, as with a plain `await`. Only the rest of one that swallows its cancellation gets a task
of its own, so that the caller can continue.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass, fields
from time import monotonic
from typing import Any, TypeVar, cast

from pipeline.component import Component
from pipeline.errors import in_a_line

ReturnT = TypeVar("ReturnT")
_log = logging.getLogger("service")


@dataclass(frozen=True)
class Deadlines:
    """Limits for the time of plugin code, in seconds."""

    start: float = 60.0
    """`start`; then the process exits."""
    call: float = 30.0
    """`admit`, `process` and `decode`; then the request is refused."""
    flush: float = 30.0
    """A flush of all exporters together; then it fails and names those that are behind."""
    reload: float = 60.0
    """A reload up to the switch; then the running configuration stays."""
    reported: float = 5.0
    """After this time the log and the health name the call."""
    export_reported: float = 10.0
    """The same for `export`, which has no deadline of its own."""
    route_reported: float = 30.0
    """The same for the handler of a route, which has none either."""
    cancelled: float = 1.0
    """How long a call may take to end after it was cancelled; then it is left behind."""
    export_cancelled: float = 2.0
    """The same for `export`, which may have a transaction to roll back."""

    @property
    def look_every(self) -> float:
        """Seconds between two checks of the calls in progress."""
        return min([1.0, *(cast("float", getattr(self, each.name)) / 4 for each in fields(self))])


class Overdue(Exception):
    """A call did not return by its deadline, in `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it did not return within {seconds:g} s")
        self.seconds = seconds


class Asked:
    """A method of a component, and its deadlines. Made once for each method, before the first call."""

    __slots__ = ("calls", "component", "doing", "patience", "reported", "seconds")

    def __init__(
        self,
        calls: Calls,
        component: Component[Any],
        doing: str,
        seconds: float | None = None,
        *,
        reported: float | None = None,
        patience: float | None = None,
    ) -> None:
        self.calls = calls
        self.component = component
        self.doing = doing
        self.seconds = seconds
        """The deadline; None if there is none."""
        self.reported = calls.deadlines.reported if reported is None else reported
        self.patience = calls.deadlines.cancelled if patience is None else patience

    @property
    def key(self) -> tuple[str, str]:
        """The component as the health page names it, and the method."""
        return name_of(self.component), self.doing

    def __str__(self) -> str:
        return f"{self.component.kind} {self.component.id}"


def name_of(component: Component[Any]) -> str:
    """`kind/id`, as the health names a component."""
    return f"{component.kind}/{component.id}"


class _Call:
    """One call that has suspended."""

    __slots__ = ("asked", "before", "cancelled_at", "cancels", "expired", "over", "since", "task")

    def __init__(self, asked: Asked, task: asyncio.Task[Any]) -> None:
        self.asked = asked
        self.since = monotonic()
        self.task = task
        self.before = task.cancelling()
        self.cancels = 0
        """Cancellations of the task that have not reached the call yet."""
        self.cancelled_at: float | None = None
        """When a cancellation reached the call, ours or one from outside."""
        self.expired = False
        self.over = False
        """Whether the caller continues without it."""

    def cancel(self) -> None:
        self.cancels += 1
        self.task.cancel()

    def look(self, now: float) -> None:
        """Cancel it if its deadline has passed."""
        asked = self.asked
        if self.cancelled_at is not None:
            if not self.over and now - self.cancelled_at >= asked.patience:
                self.over = True
                self.cancel()
        elif not self.expired and asked.seconds is not None and now - self.since >= asked.seconds:
            self.expired = True
            _log.error("%s: %s did not return within %g s: it is cancelled", asked, asked.doing, asked.seconds)
            self.cancel()

    def note(self, raised: BaseException) -> None:
        """Record an exception that is raised where the call waits. After a cancellation, it has `patience` seconds to end."""
        if not isinstance(raised, asyncio.CancelledError):
            return
        ours = self.cancels
        while self.cancels:
            self.cancels -= 1
            self.task.uncancel()
        if (ours or self.task.cancelling() > self.before) and self.cancelled_at is None:
            self.cancelled_at = monotonic()

    def is_overdue(self, raised: BaseException) -> bool:
        """Whether it raised this because of its deadline."""
        if isinstance(raised, asyncio.CancelledError) and self.task.cancelling() > self.before:
            return False  # cancelled from outside as well
        return self.expired and not isinstance(raised, GeneratorExit)


class Calls:
    """All calls in progress of one service. Without `run`, nothing is reported and nothing has a deadline."""

    def __init__(self, deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()
        self._noted: dict[_Call, None] = {}
        self._reported: dict[tuple[str, str], float] = {}
        """When each reported call began, by component and method."""
        self._left: dict[asyncio.Task[None], Asked] = {}

    async def run(self) -> None:
        """Check the calls until cancelled."""
        while True:
            await asyncio.sleep(self.deadlines.look_every)
            self._look()

    def _look(self) -> None:
        now = monotonic()
        late: dict[tuple[str, str], _Call] = {}
        for call in list(self._noted):
            call.look(now)
            if now - call.since >= call.asked.reported:
                late.setdefault(call.asked.key, call)
        for key, call in late.items():
            if key not in self._reported:
                _log.warning("%s: %s has not returned for %.0f s", call.asked, call.asked.doing, now - call.since)
        for (name, doing), since in self._reported.items():
            if (name, doing) not in late:
                _log.info("%s: %s ended after %.0f s", name.replace("/", " ", 1), doing, now - since)
        self._reported = {key: call.since for key, call in late.items()}

    def state_of(self, name: str) -> str | None:
        """The state of the component `kind/id` for the health page, if one of its calls takes long; else None."""
        now = monotonic()
        for (who, doing), since in self._reported.items():
            if who == name:
                return f"{doing} has not returned for {now - since:.0f} s"
        for asked in self._left.values():
            if asked.key[0] == name:
                return f"{asked.doing} does not end although it was cancelled"
        return None

    def late(self) -> list[str]:
        """The calls that take long, each with its component."""
        return [f"{name.replace('/', ' ', 1)} ({doing})" for name, doing in self._reported]

    async def watch(
        self,
        component: Component[Any],
        doing: str,
        method: Callable[[], Awaitable[ReturnT]],
        seconds: float | None = None,
        *,
        reported: float | None = None,
        patience: float | None = None,
    ) -> ReturnT:
        """Await a method of a component. Raises `Overdue` if it does not return within `seconds`, and whatever it raises."""
        asked = Asked(self, component, doing, seconds, reported=reported, patience=patience)
        return await asking(asked, method())

    def follow(
        self, asked: Asked, coroutine: Coroutine[Any, Any, ReturnT], yielded: Any
    ) -> Generator[Any, Any, ReturnT]:
        """Run the rest of a call that has suspended."""
        task = asyncio.current_task()
        assert task is not None
        call = _Call(asked, task)
        self._noted[call] = None
        try:
            while True:
                sent, raised = None, None
                try:
                    sent = yield yielded
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:
                    raised = error
                    call.note(error)
                    if call.over:
                        self._leave(asked, coroutine, error)
                        raise
                yielded = _step(coroutine, sent, raised)
        except StopIteration as done:
            if call.expired:
                raise Overdue(asked.seconds or 0) from None
            return cast("ReturnT", done.value)
        except BaseException as error:
            if call.is_overdue(error):
                raise Overdue(asked.seconds or 0) from error
            raise
        finally:
            while call.cancels:  # it ended just when it was given up
                call.cancels -= 1
                call.task.uncancel()
            del self._noted[call]

    def _leave(self, asked: Asked, coroutine: Coroutine[Any, Any, Any], error: BaseException) -> None:
        """Move the rest of a call that does not end into a task of its own."""
        _log.error("%s: %s does not end although it was cancelled: it is left behind", asked, asked.doing)
        task = asyncio.get_running_loop().create_task(_rest(coroutine, error), name=f"left behind: {asked}")
        self._left[task] = asked
        task.add_done_callback(self._left.pop)


def _step(coroutine: Coroutine[Any, Any, Any], sent: Any, raised: BaseException | None) -> Any:
    """Run it until it suspends again."""
    try:
        return coroutine.send(sent) if raised is None else coroutine.throw(raised)
    except GeneratorExit as error:
        raise RuntimeError("GeneratorExit was raised") from error


async def _rest(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> None:
    try:
        await _drive(coroutine, error)
    except BaseException as raised:
        _log.debug("a call that was left behind raised %s", in_a_line(raised))


@types.coroutine
def _drive(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Generator[Any, Any, None]:
    """Continue a coroutine by raising `error` where it waits."""
    raised: BaseException | None = error
    sent = None
    while True:
        try:
            yielded = coroutine.send(sent) if raised is None else coroutine.throw(raised)
        except StopIteration:
            return
        raised, sent = None, None
        try:
            sent = yield yielded
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as thrown:
            raised = thrown


@types.coroutine
def asking(asked: Asked, awaitable: Awaitable[ReturnT]) -> Generator[Any, Any, ReturnT]:
    """Await what a component returned, under the deadline of `asked`. Raises `Overdue`, and whatever the component raises."""
    coroutine = coroutine_of(awaitable)
    try:
        yielded = coroutine.send(None)
    except StopIteration as done:
        return cast("ReturnT", done.value)
    except GeneratorExit as error:
        raise RuntimeError("GeneratorExit was raised") from error
    return (yield from asked.calls.follow(asked, coroutine, yielded))


def coroutine_of(awaitable: Awaitable[ReturnT]) -> Coroutine[Any, Any, ReturnT]:
    """An awaitable as a coroutine. If it is not awaitable, awaiting the coroutine raises `TypeError`."""
    return cast("Any", awaitable) if type(awaitable) is types.CoroutineType else _coroutine(awaitable)


async def _coroutine(awaitable: Awaitable[ReturnT]) -> ReturnT:
    return await awaitable
