"""One rendering for all who ask at the same time, whoever of them goes away meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from pipeline import Failures
from plugins.exporters.prometheus.exposition import SERIES_AT_A_TIME, Format
from plugins.exporters.prometheus.scrape import MAX_SENDING, Renderings, ScrapeApp
from tests.plugins.exporters.prometheus.otlp import Exposed, gauge, number

pytestmark = pytest.mark.anyio

SCRAPE = {"method": "GET", "path": "/metrics", "headers": []}


class Writer:
    """Writes as many renderings as `allowed` lets it, numbered."""

    def __init__(self, allowed: int, behind: Sequence[str] = ()) -> None:
        self.behind = behind
        self.written = 0
        self.writing = asyncio.Event()
        self.allowed = asyncio.Semaphore(allowed)
        self.renderings = Renderings(self.freshen, self.write, lambda seconds: None)

    async def freshen(self) -> Sequence[str]:
        return self.behind

    async def write(self, format: Format) -> Sequence[bytes]:
        self.writing.set()
        await self.allowed.acquire()
        self.written += 1
        return [b"%d" % self.written]

    def ask(self) -> asyncio.Task[Sequence[bytes] | None]:
        return asyncio.create_task(self.renderings.get(Format.TEXT, gzip=False))


async def test_all_who_come_while_one_is_made_share_the_next() -> None:
    writer = Writer(allowed=0)
    first = writer.ask()
    await writer.writing.wait()
    others = [writer.ask() for _ in range(99)]
    await asyncio.sleep(0)
    writer.allowed.release()
    writer.allowed.release()
    assert await first == [b"1"]
    assert await asyncio.gather(*others) == [[b"2"]] * 99


async def test_who_goes_away_while_it_is_made_takes_nothing_from_the_others() -> None:
    writer = Writer(allowed=0)
    first = writer.ask()
    await writer.writing.wait()
    one, another = writer.ask(), writer.ask()
    await asyncio.sleep(0)
    writer.writing.clear()
    writer.allowed.release()
    assert await first == [b"1"]
    await writer.writing.wait()
    one.cancel()
    writer.allowed.release()
    assert await another == [b"2"]


async def test_nothing_is_shown_until_nobody_was_behind_once() -> None:
    writer = Writer(allowed=2, behind=["series"])
    assert await writer.ask() is None
    writer.behind = ()
    assert await writer.ask() == [b"1"]
    writer.behind = ["series"]
    assert await writer.ask() == [b"2"]


async def test_all_who_ask_while_somebody_is_behind_share_that_answer_too() -> None:
    asked = 0

    async def freshen() -> Sequence[str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return ["series"]

    renderings = Renderings(freshen, Writer(allowed=0).write, lambda seconds: None)
    answers = await asyncio.gather(*[renderings.get(Format.TEXT, gzip=False) for _ in range(100)])
    assert (set(answers), asked) == ({None}, 2)


async def test_a_rendering_that_is_broken_off_leaves_nothing_unwritten() -> None:
    exposed = Exposed()
    count = 5 * SERIES_AT_A_TIME
    await exposed.take(gauge("a", *[number(1, {"b": str(each)}) for each in range(count)]))
    broken_off = asyncio.create_task(exposed.text())
    for _ in range(3):  # far enough to have written some
        await asyncio.sleep(0)
    broken_off.cancel()
    assert len(await exposed.shown()) == count


async def test_those_who_read_slowest_are_given_up_when_too_many_renderings_are_on_their_way() -> None:
    writer = Writer(allowed=MAX_SENDING + 2)
    app = ScrapeApp(writer.renderings, None, 60, Failures(0), logging.getLogger("test"))
    ended: list[int] = []

    async def stalled(message: Any) -> None:
        await anyio.sleep_forever()

    async def scrape(number: int) -> None:
        await app(SCRAPE, None, stalled)
        ended.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(MAX_SENDING + 2):
            tasks.start_soon(scrape, number)
            await anyio.wait_all_tasks_blocked()
        assert ended == [0, 1]
        tasks.cancel_scope.cancel()
