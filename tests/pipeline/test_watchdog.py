"""Who blocks the event loop is named, by the thread that looks at it."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pipeline import ComponentConfig, Processor, watchdog
from pipeline.testing import NopHost
from pipeline.watchdog import BLOCKED_SECONDS, Watchdog
from tests.running import until

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs on one of the loops that the service may run on."""

    def call(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return call


@asynccontextmanager
async def watching() -> AsyncIterator[Watchdog]:
    """A watchdog that runs, and whose thread has ended afterwards."""
    before = threading.active_count()
    dog = Watchdog()
    task = asyncio.create_task(dog.run())
    await asyncio.sleep(0)
    assert threading.active_count() == before + 1
    yield dog
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert threading.active_count() == before


async def noted(dog: Watchdog) -> None:
    """The loop has dealt with what the thread has seen."""
    await until(lambda: dog.seen is None)


def block_until_seen(dog: Watchdog) -> None:
    """Keep the loop from running until the thread has seen it."""
    while dog.seen is None:
        time.sleep(0.01)


class Slow(Processor[ComponentConfig]):
    """Blocks the loop, as nobody should."""

    def wait(self, dog: Watchdog) -> None:
        block_until_seen(dog)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def compute(self, seconds: float) -> None:
        # One call in C, which lets no other thread run.
        began = time.perf_counter()
        sum(range(10**6))
        sum(range(int(10**6 * seconds / (time.perf_counter() - began))))


def slow() -> Slow:
    return Slow("slow", ComponentConfig(), NopHost())


def counted(dog: Watchdog, name: str) -> dict[str, Any]:
    """The readings of that instrument by component."""
    (instrument,) = [each for each in dog.instruments() if each.name == name]
    return {labels["component"]: value for labels, value in instrument.read()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_who_blocks_the_loop_is_counted_and_named_in_one_line(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with watching() as dog:
            slow().wait(dog)
            await noted(dog)
            slow().wait(dog)
            await noted(dog)
            assert counted(dog, "component_blocked_loop_total") == {"processor/slow": 2}
            (seconds,) = counted(dog, "component_blocked_loop_seconds_total").values()
            assert seconds >= 2 * BLOCKED_SECONDS
            state = dog.state_of("processor/slow")
            assert state is not None
            assert state.startswith("blocked the event loop for ")
            assert ", 0 s ago at pipeline/test_watchdog.py:" in state
            assert state.endswith(" wait")
            assert dog.state_of("processor/other") is None

    run(main())
    one, two = warnings(caplog)
    assert one.startswith("processor/slow blocked the event loop for ")
    assert " s at pipeline/test_watchdog.py:" in one
    assert two.startswith("processor/slow blocked")


def test_a_call_that_lets_no_other_thread_run_is_named_too(run: Run) -> None:
    async def main() -> None:
        async with watching() as dog:
            slow().compute(3 * BLOCKED_SECONDS)
            await noted(dog)
            assert counted(dog, "component_blocked_loop_total") == {"processor/slow": 1}
            assert (dog.state_of("processor/slow") or "").endswith(" compute")

    run(main())


def test_what_is_no_component_is_shown_by_its_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with watching() as dog:
            block_until_seen(dog)
            await noted(dog)
            assert counted(dog, "component_blocked_loop_total") == {"unknown": 1}

    asyncio.run(main())
    (line,) = warnings(caplog)
    assert line.startswith("unknown blocked the event loop for ")
    assert line.endswith(" block_until_seen")


def test_a_block_that_goes_on_is_named_once_before_it_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LONG_SECONDS", 0.7)

    async def main() -> None:
        async with watching() as dog:
            slow().sleep(1.5)
            await noted(dog)

    asyncio.run(main())
    early, late = warnings(caplog)
    assert early.startswith("processor/slow has blocked the event loop for ")
    assert late.startswith("processor/slow blocked the event loop for ")


def test_a_loop_that_runs_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with watching() as dog:
            for _ in range(10):
                slow().sleep(0.05)
                await asyncio.sleep(0.05)
            assert counted(dog, "component_blocked_loop_total") == {}
            assert sum(dog.delay.counts) > 5

    asyncio.run(main())
    assert warnings(caplog) == []


def test_after_a_while_the_state_says_nothing_of_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with watching() as dog:
            slow().wait(dog)
            await noted(dog)
            assert dog.state_of("processor/slow") is not None
            monkeypatch.setattr(watchdog, "SHOWN_SECONDS", 0.0)
            assert dog.state_of("processor/slow") is None
            assert counted(dog, "component_blocked_loop_total") == {"processor/slow": 1}

    asyncio.run(main())


def test_a_component_without_an_id_does_not_end_the_thread() -> None:
    async def main() -> None:
        async with watching() as dog:
            nameless = slow()
            del nameless.id
            nameless.wait(dog)
            await noted(dog)
            slow().wait(dog)
            await noted(dog)
            assert counted(dog, "component_blocked_loop_total") == {"processor/?": 1, "processor/slow": 1}

    asyncio.run(main())


STOPPED = """
import asyncio, sys
from pipeline.watchdog import LOOK_EVERY, Watchdog
from tests.pipeline.test_watchdog import counted, uvloop

async def main():
    dog = Watchdog()
    task = asyncio.create_task(dog.run())
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, asked.set)
    await asyncio.sleep(0)
    print("runs", flush=True)
    await asked.wait()
    while not sum(dog.delay.counts[-4:]):
        await asyncio.sleep(LOOK_EVERY)
    await asyncio.sleep(3 * LOOK_EVERY)
    print(counted(dog, "component_blocked_loop_total"), any(dog.delay.counts[-4:]), flush=True)

with asyncio.Runner(loop_factory={loop}) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
def test_while_the_process_stands_still_nobody_in_it_blocks_the_loop(loop: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED.replace("{loop}", loop)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3 * BLOCKED_SECONDS)
        process.send_signal(signal.SIGCONT)
        process.stdin.write("say\n")
        process.stdin.flush()
        assert process.stdout.readline() == "{} True\n"
