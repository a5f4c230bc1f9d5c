"""What the service cannot do without: when a task or a thread of the engine ends by a mistake, the whole service ends, to be started anew.

It says so first, in `/health` and by refusing pushes, so that nobody waits for what will not come. Nothing is lost: what was answered 200
is in the journals. What a component has spawned is its own affair, and shown in `/health` (`pipeline/service.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.abc import TaskGroup

from pipeline.containment import CONTAINED, FAULT
from pipeline.errors import StartError, text_of
from pipeline.failed_sync import DRAIN_SECONDS

if TYPE_CHECKING:
    from pipeline.graph import Graph

_log = logging.getLogger("service")


class Starts(Protocol):
    """What starts tasks: a task group, or one that is supervised."""

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, Any]], /, *arguments: Any, name: object = None
    ) -> object:
        """See `TaskGroup.start_soon`."""


class Supervision:
    """Notices that something has ended. `end` is called then, and is to make the service stop in order."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.fault: str | None = None
        """What has ended, and why; None while all is well."""
        self._end = end
        self._tasks: TaskGroup | None = None

    def watch(self, graph: Graph) -> None:
        """Hear of it when the thread of a journal ends."""
        for pipeline in graph.pipelines:
            pipeline.journal.tell_ended = self.note
            if pipeline.journal.fault is not None:
                self.note(pipeline.journal.fault)

    def of(self, tasks: TaskGroup) -> Starts:
        """Start tasks in that group, and watch them."""
        self._tasks = tasks
        return self

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, Any]], /, *arguments: Any, name: object = None
    ) -> None:
        """See `Starts`."""
        assert self._tasks is not None
        self._tasks.start_soon(self._watch, function, arguments, name, name=name)

    async def _watch(
        self, function: Callable[..., Coroutine[Any, Any, Any]], arguments: tuple[Any, ...], name: object
    ) -> None:
        try:
            await function(*arguments)
        except CONTAINED as error:
            _log.critical("%s has ended", name, exc_info=error)
            self.note(f"{name} has ended: {text_of(error)}")

    def note(self, fault: str) -> None:
        """Something has ended."""
        if self.fault is None:
            self.fault = fault
            _log.critical("ends itself, to be started anew: %s", fault)
            self._end()

    async def drain(self) -> None:
        """After a fault, leave some time for refusals to reach who waits, and for the health to be seen."""
        if self.fault is not None:
            await anyio.sleep(DRAIN_SECONDS)

    def check(self) -> None:
        """Raise `StartError` with exit code 70 if there was a fault."""
        if self.fault is not None:
            raise StartError(self.fault, FAULT)
