"""Cancelling at an await."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from pipeline.testing.steps import Stepped

pytestmark = pytest.mark.anyio


class Steps:
    """Two awaits: one of the loop's next turn, one of something real."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.waited_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> None:
        await asyncio.sleep(0)
        self.done.append("slept")
        asyncio.get_running_loop().call_later(0.01, self._come)
        await self.waited_for
        self.done.append("waited")

    def _come(self) -> None:
        if not self.waited_for.cancelled():
            self.waited_for.set_result(None)


@pytest.mark.parametrize("run", [Stepped.run_in_scope, Stepped.run_in_task])
@pytest.mark.parametrize(("at", "done"), [(1, []), (2, ["slept"]), (3, ["slept", "waited"])])
async def test_it_is_cancelled_at_the_await_that_is_asked_for(run, at: int, done: list[str]) -> None:  # type: ignore[no-untyped-def]
    steps = Steps()
    stepped = await run(Stepped(steps(), at))
    assert steps.done == done
    assert stepped.reached == stepped.cancelled == isinstance(stepped.error, asyncio.CancelledError) == (at < 3)
    assert steps.waited_for.cancelled() == (at == 2), "what it waits for is cancelled with it"


async def test_what_is_shielded_goes_on_to_its_end() -> None:
    steps = Steps()

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await steps()

    stepped = await Stepped(shielded(), 1).run_in_scope()
    assert steps.done == ["slept", "waited"]
    assert (stepped.reached, stepped.cancelled, stepped.swallowed) == (True, False, False)


async def test_whoever_goes_on_although_it_was_cancelled_is_found_out() -> None:
    async def deaf() -> None:
        try:
            await asyncio.sleep(9)
        except asyncio.CancelledError:
            return

    for run in (Stepped.run_in_scope, Stepped.run_in_task):
        assert (await run(Stepped(deaf(), 1))).swallowed


async def test_an_error_is_kept_cancelled_or_not() -> None:
    async def failing() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            raise KeyError("x")

    for at in (1, 2):
        stepped = await Stepped(failing(), at).run_in_task()
        assert isinstance(stepped.error, KeyError)
        assert stepped.cancelled == (at == 1)
