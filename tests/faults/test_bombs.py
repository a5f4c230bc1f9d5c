"""Bodies that cost more than they look: dozens at a time, the service stays small and answers others at once.

Packed bombs, bodies of the largest size that are sent all at once, and documents of a million small things.
"""

from __future__ import annotations

import gzip
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.faults.hostile import GZIP, METRIC, bomb, document, many, zeros
from tests.faults.raw import chunked, exchange, push, status
from tests.faults.sizes import sized
from tests.faults.test_hostile_inputs import Served, is_ours, serving

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(sized(120, 600))]

AT_A_TIME = sized(32, 64)
TIMES = sized(1, 3)
MEGABYTE = 10**6
GROWTH = 300 * MEGABYTE
SENDING: set[object] = set()
"""Those of `held_back` that have not sent all but the last byte, and were not answered."""

JUST_SMALL_ENOUGH = gzip.compress(b'{"service":"test","x":"%s","metrics":[]}' % (b"y" * 9_900_000))
PLAIN = push(b'{"service":"test","metrics":["%s"]}' % (b"y" * 9_900_000))


def packed_metadata(lists: int) -> bytes:
    """A document with so many lists in the metadata of its one metric; three bytes each, and twenty times as many in memory."""
    return gzip.compress(document({**METRIC, "metadata": {"a": [[]] * lists}}).replace(b" ", b""))


def held_back() -> Iterable[bytes]:
    """A body of the largest size but for its last byte, and that when all others have as much."""
    client = object()
    SENDING.add(client)
    try:
        yield PLAIN[:-1]
    finally:
        SENDING.remove(client)
    deadline = time.monotonic() + 8  # less than a body may take: who is not read from is not waited for longer
    while SENDING and time.monotonic() < deadline:
        time.sleep(0.02)
    yield PLAIN[-1:]


BOMBS: dict[str, tuple[bytes | Callable[[], Iterable[bytes]], set[int]]] = {
    "gzip": (lambda: bomb("gzip"), {413}),
    "deflate": (lambda: bomb("deflate"), {413}),
    "zstd": (lambda: bomb("zstd"), {413}),
    "as large as may be": (push(JUST_SMALL_ENOUGH, GZIP), {422, 503}),
    "plain": (PLAIN, {422, 503}),
    "held back": (held_back, {422, 503}),
    "chunks": (lambda: chunked(itertools.repeat(b" " * 65536)), {413, 503}),
    "metrics": (push(many(b'{"v":1}')), {413, 503}),
    "numbers": (push(gzip.compress(many(b"1")), GZIP), {413, 503}),
    "metadata": (push(packed_metadata(3 * 10**6), GZIP), {413, 503}),
    "metadata as large as may be": (push(packed_metadata(300_000), GZIP), {422, 503}),
}
"""What is sent, and what may be answered: 503 when others hold too much already."""

PACKED = ("gzip", "deflate", "zstd", "as large as may be")


@dataclass
class Seen:
    """What became of bombs, and of good pushes meanwhile."""

    answers: Counter[int] = field(default_factory=Counter)
    good: list[float] = field(default_factory=list)


def memory_of(pid: int, what: str = "VmRSS") -> int:
    """What a process holds, in bytes; with VmHWM, the most that it ever did."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def throw(port: int, kind: str) -> int:
    """Send one and see what it is answered."""
    data, _ = BOMBS[kind]
    return status(exchange(port, data if isinstance(data, bytes) else data(), "127.0.1.1"))


def throw_all(port: int, kind: str, count: int, at_a_time: int = AT_A_TIME) -> Counter[int]:
    """So many bombs, so many at a time. In a process of its own, whose threads keep nobody else from running."""
    if kind in ("gzip", "deflate", "zstd"):
        zeros(kind)  # made once, and not by every thread
    with ThreadPoolExecutor(at_a_time) as threads:
        return Counter(threads.map(throw, [port] * count, [kind] * count))


def bombed(served: Served, bombers: ProcessPoolExecutor, kind: str, count: int, at_a_time: int = AT_A_TIME) -> Seen:
    """So many bombs of a kind, with a good client beside."""
    seen = Seen()
    throwing = bombers.submit(throw_all, served.port, kind, count, at_a_time)
    while not throwing.done():
        began = time.monotonic()
        assert status(exchange(served.port, push())) == 200
        seen.good.append(time.monotonic() - began)
        wait([throwing], 0.01)
    seen.answers = throwing.result()
    return seen


@pytest.fixture(scope="module")
def bombers() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(memory_of, os.getpid()).result()  # has been started
        yield pool


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
def test_bombs_cost_little_memory_and_nobody_elses_time(
    tmp_path: Path, server: str, bombers: ProcessPoolExecutor
) -> None:
    with serving(tmp_path, server) as served:
        exchange(served.port, push())
        before = memory_of(served.pid)
        beside_packed: list[float] = []
        for kind, (_, right) in BOMBS.items():
            seen = bombed(served, bombers, kind, AT_A_TIME * TIMES)
            assert seen.answers.total() == AT_A_TIME * TIMES
            assert seen.answers.keys() <= right, kind
            assert max(seen.good) < 3, kind
            if kind in PACKED:
                beside_packed += seen.good
        # 0.25 s where nothing else runs: twice that, for machines that have more to do.
        assert sorted(beside_packed)[int(len(beside_packed) * 0.99)] < 0.5
        assert memory_of(served.pid, "VmHWM") - before < GROWTH
        assert [line for line in (tmp_path / "service.log").read_text().splitlines() if is_ours(line)] == []
        served.check("C2 chunks without end")  # and all is counted and given back


WRONG = '''
"""A service that is wrong on purpose: it takes whatever comes."""

from pipeline import hookimpl
from plugins.receivers.http.body import Share

Share.take = lambda self, size: None


@hookimpl
def declare_components():
    return []
'''


def test_the_same_bodies_find_a_service_that_takes_them_all(tmp_path: Path, bombers: ProcessPoolExecutor) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    with serving(tmp_path, "hypercorn", "--plugins-dir", str(tmp_path / "plugins")) as served:
        exchange(served.port, push())
        before = memory_of(served.pid)
        bombed(served, bombers, "held back", 64, at_a_time=64)
        assert memory_of(served.pid, "VmHWM") - before > GROWTH
