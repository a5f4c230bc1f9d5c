"""What the engine relies on in the life of every component: constructed, started, stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio

from pipeline import Component, Finding
from pipeline.testing.remains import Held, left_by
from pipeline.testing.stage import Stage, stop, within
from pipeline.testing.subject import check


class Living(Stage):
    """Checks the life of a component."""

    async def test_construction_touches_nothing(self, tmp_path: Path) -> None:
        """`__init__` wires: no thread, no file, no socket, no task."""
        async with self.surroundings(tmp_path) as host:
            self.config(tmp_path)
            files = Held(tmp_path).files
            self.construct(tmp_path, host)  # what a library keeps from its first use on is not held against anybody
            await host.end()
            before = Held()
            before.files = files
            component = self.construct(tmp_path, host)
            touched = Held(tmp_path).since(before)
            await host.end()
            check(not touched, f"__init__ of {type(component).__name__} makes {', '.join(touched)} (do so in start)")

    async def test_what_it_tells_doctor_needs_no_start_and_changes_nothing(self, tmp_path: Path) -> None:
        """`findings` is asked beside a running service and without one."""
        async with self.surroundings(tmp_path) as host:
            component = self.construct(tmp_path, host)
            before = Held(tmp_path).files
            found: list[object] = list(component.findings())
            wrong = [each for each in found if not isinstance(each, Finding)]
            check(not wrong, f"findings of {type(component).__name__} gives {wrong!r} (must be of the type Finding)")
            made = [text for path, text in Held(tmp_path).files.items() if path not in before]
            check(not made, f"findings of {type(component).__name__} makes {', '.join(made)} (only look)")

    async def test_every_extension_that_it_asks_for_is_named_in_requires(self, tmp_path: Path) -> None:
        """So that a configuration without it is refused before anything is constructed."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            await self.exercise(component)
            unnamed = {each.__name__ for each in host.asked if each not in (*component.requires, *component.uses)}
            check(
                not unnamed,
                f"{type(component).__name__} asks its host for {', '.join(sorted(unnamed))} (name it in requires or uses)",
            )

    async def test_it_stops_without_a_start(self, tmp_path: Path) -> None:
        """A service that fails to start stops everything, started or not."""
        async with self.surroundings(tmp_path) as host:
            await stop(self.construct(tmp_path, host), "without a start")

    async def test_it_stops_twice(self, tmp_path: Path) -> None:
        """The second time, there is nothing to do."""
        async with self.surroundings(tmp_path) as host:
            async with self.alive(tmp_path, host) as component:
                await self.exercise(component)
            await stop(component, "a second time")

    async def test_it_lives_again_in_the_same_process(self, tmp_path: Path) -> None:
        """As a new instance, and the old one is not in its way: a configuration that is loaded anew does that."""
        async with self.surroundings(tmp_path) as host:
            for _ in range(2):
                async with self.alive(tmp_path, host) as component:
                    await self.exercise(component)
                if component in host.extensions:
                    host.extensions.remove(component)

    async def test_it_takes_its_configuration_again_while_it_runs(self, tmp_path: Path) -> None:
        """A reload calls `reload` even if the options are the same; without the method there is nothing to check."""
        if self.declaration().component.reload is Component.reload:
            return
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            await self.exercise(component)
            config = self.config(tmp_path)
            await within(component.reload(config, host), "reload does not return")
            apply = await within(component.reload(config, host), "a second reload does not return")
            check(callable(apply), f"reload gives {apply!r} (return a function that puts the configuration in force)")
            apply()
            component.config = config
            await self.exercise(component)

    async def test_what_it_spawns_runs_and_ends_when_it_is_cancelled(self, tmp_path: Path) -> None:
        """A background task that raises has failed, and with it the component."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            await self.exercise(component)
            await within(anyio.wait_all_tasks_blocked(), "a task that it spawned never waits for anything")
            errors = await host.end()
            check(
                not errors,
                f"a task that {type(component).__name__} spawned raised {errors!r} (handle what it may meet, and go on)",
            )

    async def test_nothing_is_left_after_a_stop(self, tmp_path: Path) -> None:
        """`stop` gives all of it back: tasks, threads, files and sockets."""

        async def life() -> Component[Any]:
            async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
                await self.exercise(component)
            return component

        left, component = await left_by(life)
        check(not left, f"{type(component).__name__} leaves behind {', '.join(left)} (give it back in stop)")
