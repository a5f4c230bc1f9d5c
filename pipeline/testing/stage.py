"""How a suite lets a component live: among the extensions that it needs, started and stopped as the engine does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio

from pipeline import Component, Connector, Extension, Receiver
from pipeline.testing.doubles import NopHost, SinkChain
from pipeline.testing.subject import Subject, fail

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a call of a component may take. Nothing here has a reason to take one."""


class TaskHost(NopHost):
    """A host that runs what is spawned, and remembers in `asked` which interfaces were asked for."""

    def __init__(self, *extensions: Extension[Any]) -> None:
        super().__init__(*extensions)
        self.asked: list[type] = []
        self.optional: Sequence[type] = ()
        """What the component asks for where an extension offers it."""
        self._tasks: list[asyncio.Task[None]] = []

    def extension(self, interface: type[T]) -> T:
        """See `Host.extension`."""
        self.asked.append(interface)
        try:
            return super().extension(interface)
        except LookupError:
            if interface in self.optional:
                raise
            fail(
                f"the component asks its host for {interface.__name__}, which no extension of the test offers"
                " (return one from the method extensions of the test class)"
            )

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        """See `Host.spawn`."""
        super().spawn(component, task)

        async def run() -> None:
            await task()

        self._tasks.append(asyncio.create_task(run(), name=f"spawned by {component.id}"))

    async def end(self) -> list[BaseException]:
        """Cancel what was spawned and wait until it has ended: the errors that it raised."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        ended = await within(
            asyncio.gather(*tasks, return_exceptions=True),
            "a task that it spawned goes on after it was cancelled (let CancelledError pass)",
        )
        return [each for each in ended if isinstance(each, Exception)]


async def within(call: Awaitable[T], otherwise: str) -> T:
    """The result of the call; fails with what is said if it takes too long."""
    with anyio.move_on_after(PATIENCE):
        return await call
    return fail(f"{otherwise}; it was waited for for {PATIENCE:g} s")


async def outcome(call: Awaitable[Any], what: str) -> type[Exception] | None:
    """The kind of error that a call ends with, None if it succeeds. `what` is what is called. Which errors are right is a check
    of its own."""
    try:
        await within(call, f"{what} does not end")
    except Exception as error:
        return type(error)
    return None


async def start(component: Component[Any]) -> None:
    """Start it. A start that raises or takes long is a fault."""
    call = component.start()
    try:
        await within(call, "start does not return (give what goes on in the background to host.spawn)")
    except Exception as error:
        fail(f"start raised {error!r} with the options of the test", error)


async def stop(component: Component[Any], when: str) -> None:
    """Stop it. A stop that raises or takes long is a fault."""
    call = component.stop()
    try:
        await within(call, f"stop {when} does not return (wait for nothing that may never come)")
    except Exception as error:
        fail(f"stop {when} raised {error!r} (stop must be safe without a start, and safe twice)", error)


class Stage(Subject):
    """Gives the component its life."""

    @asynccontextmanager
    async def surroundings(self, folder: Path) -> AsyncIterator[TaskHost]:
        """A host whose extensions have started. They are stopped at the end."""
        extensions = self.extensions(folder)
        try:
            for extension in extensions:
                await extension.start()
            yield TaskHost(*extensions)
        finally:
            for extension in reversed(extensions):
                await extension.stop()

    def construct(self, folder: Path, host: TaskHost) -> Component[Any]:
        """The component, not started."""
        host.optional = self.declaration().component.uses
        component = self.declaration().component(self.type, self.config(folder), host)
        if isinstance(component, (Receiver, Connector)):
            component.chain = SinkChain()
        if isinstance(component, Extension):
            host.extensions.append(component)
        return component

    @asynccontextmanager
    async def alive(self, folder: Path, host: TaskHost) -> AsyncIterator[Component[Any]]:
        """The component, started. It is stopped at the end."""
        component = self.construct(folder, host)
        try:
            await start(component)
            yield component
        finally:
            await host.end()
            await stop(component, "after a start")

    async def exercise(self, component: Component[Any]) -> None:
        """Let it do what it is for, once; overridden for the kinds that are handed something."""
