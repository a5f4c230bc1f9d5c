"""One budget for decoded data in memory: what it costs, who may hold how much, and who holds how much now.

Encoded bytes say little about memory: two bytes of JSON may take a hundred as Python objects. So everything here counts what the
objects cost. The budget has four parts, so that none can starve another:

bodies       of requests that are being received, packed and unpacked; past it a push is refused with 503
decoded      their batches until these are committed; past it a request waits a few seconds before it is decoded, then gets 503
recent       the newest batches of every journal; past it the oldest are forgotten, and exporters read them from disk
deliveries   what exporters work on, an equal share for each; a delivery ends where its share is used up

One request may always proceed, and a delivery always has a batch, however large: nothing can get stuck.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from sys import getsizeof
from typing import NoReturn, Protocol

from pipeline.data import Batch, Event, EventBatch
from pipeline.errors import Overloaded

DEFAULT_BUDGET = 192 * 2**20
"""Bytes. With what the program takes by itself, it fits into 512 MiB."""
LEAST_BUDGET = 32 * 2**20
"""Bytes. With less, a push of the largest size always has to be alone."""
BODIES, DECODED, RECENT, DELIVERIES = 1 / 4, 1 / 4, 1 / 8, 3 / 8
"""The parts of the budget."""
FIRST_DELIVERY = 4 * 2**20
"""What a worker's first delivery may cost, in bytes; each that succeeds allows the next one twice as much, up to its share. What once took
too much memory is so read in small pieces."""
UNTIL_LESS = 1.0
"""When to try again what the budget had no room for, in seconds."""
MOST_WAIT = 5.0
"""How long a request waits for others to be committed before it is refused, in seconds."""

_ARENA_MAX, _MMAP_THRESHOLD = -8, -3
"""Parameters of glibc's mallopt."""
LARGE = 256 * 1024
"""Bytes: what is at least as large is given back to the system when it is freed."""

BATCH_COST = 600
"""The batch itself with the strings of its request, and the record that the journal makes of it."""
EVENT_COST = 250
"""An event without dimensions and metadata: the object, its time, its two numbers, and its type."""
DIMENSIONS_COST = 184
"""The mapping of up to five dimensions."""
DIMENSION_COST = 84
"""One dimension: its place in the mapping, and the heads of its name and its value."""

SMALL_DOCUMENT = 64 * 1024
"""Bytes; of a smaller document only the length is looked at to estimate its cost."""
MOST_PER_BYTE = 12
"""What a byte of JSON costs decoded, at most."""
PER_OBJECT, PER_NAME, WIDEST = 500, 160, 4
"""The same by what a document holds: for an object, for a name, and for a character beyond ASCII."""


def return_freed_memory() -> None:
    """Have the C library return freed memory: one arena for all threads, and a mapping of its own for each large object.

    Its defaults keep an arena for each thread and raise the size of mapped objects to 32 MiB. A process that once decoded a few large
    pushes then stays large. Does nothing where the C library has no `mallopt`.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_ARENA_MAX, 1)
        library.mallopt(_MMAP_THRESHOLD, LARGE)


def cost_of(batch: Batch, encoded: int = 0, *, is_ascii: bool = False) -> int:
    """The bytes that a decoded batch takes, with `encoded` more for its encoded form.

    With `is_ascii`, which says that its text is ASCII, it is estimated from `encoded`, which must not be 0; else every value is looked at.
    """
    if not isinstance(batch, EventBatch):
        return BATCH_COST + getsizeof(batch.request) + encoded
    events = batch.events
    if not is_ascii:
        return BATCH_COST + sum(map(_cost_of_event, events)) + encoded
    dimensions = sum([len(event.dimensions) for event in events])
    return BATCH_COST + (EVENT_COST + DIMENSIONS_COST) * len(events) + DIMENSION_COST * dimensions + 2 * encoded


def _cost_of_event(event: Event) -> int:
    cost = EVENT_COST + getsizeof(event.metadata_json)
    dimensions = event.dimensions
    if dimensions:
        cost += getsizeof(dimensions) + sum(map(getsizeof, dimensions)) + sum(map(getsizeof, dimensions.values()))
    return cost


def estimate(document: bytes) -> int:
    """What a JSON document may cost when it is decoded, at most."""
    size = len(document)
    most = MOST_PER_BYTE * size
    if size < SMALL_DOCUMENT:
        return most
    width = 1 if document.isascii() and b"\\u" not in document else WIDEST
    return min(most, width * size + PER_OBJECT * document.count(b"{") + PER_NAME * document.count(b":"))


class Pool:
    """Bytes that several holders have together, and how many these may be."""

    __slots__ = ("_waiting", "limit", "refused", "used")

    def __init__(self, limit: float) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.limit = limit
        self.used = 0
        self.refused = 0
        """How often there was no room."""

    @property
    def has_line(self) -> bool:
        """Whether others wait for room."""
        return bool(self._waiting)

    def change(self, size: int) -> None:
        """Hold so many more, or less if it is negative."""
        self.used += size
        if size < 0 and self._waiting:
            self._wake()

    def _wake(self) -> None:
        """Let the next one in line look whether there is room for it."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def in_line(self, has_room: Callable[[], bool]) -> bool:
        """Return whether there is room within a few seconds. Whoever came first is first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + MOST_WAIT
        first = False
        try:
            while not has_room() or (self._waiting and not first):
                waiting = loop.create_future()
                (self._waiting.appendleft if first else self._waiting.append)(waiting)
                first = True
                try:
                    async with asyncio.timeout_at(deadline):
                        await waiting
                except TimeoutError:
                    return False
            return True
        finally:
            self._wake()  # there may be room for the next one as well


class Hold:
    """The bytes that one holder has of a pool. One that is alone may have any number."""

    __slots__ = ("_pool", "size")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.size = 0

    def take(self, size: int) -> None:
        """Hold so many more. Raises `Overloaded` if all together would hold too many."""
        if not self._has_room(size):
            self._refuse()
        self.size += size
        self._pool.change(size)

    async def take_in_turn(self, size: int) -> None:
        """Hold so many more once there is room. Raises `Overloaded` if there is none within a few seconds."""
        at_once = self._has_room(size) and not self._pool.has_line
        if not at_once and not await self._pool.in_line(lambda: self._has_room(size)):
            self._refuse()
        self.size += size
        self._pool.change(size)

    def _has_room(self, size: int) -> bool:
        pool = self._pool
        return pool.used + size <= pool.limit or pool.used <= self.size

    def _refuse(self) -> NoReturn:
        self._pool.refused += 1
        raise Overloaded("Too many bytes are being received now", UNTIL_LESS)

    def set(self, size: int) -> None:
        """Hold exactly so many, whether there is room or not: they are in memory already."""
        self._pool.change(size - self.size)
        self.size = size

    def give_back(self) -> None:
        """Hold nothing. Safe twice."""
        size, self.size = self.size, 0
        if size:
            self._pool.change(-size)


class RequestHold:
    """What one request holds: its body, and what is decoded from it."""

    __slots__ = ("bodies", "decoded")

    def __init__(self, memory: Memory) -> None:
        self.bodies = Hold(memory.bodies)
        self.decoded = Hold(memory.decoded)

    def give_back(self) -> None:
        """Hold nothing. Safe twice."""
        self.bodies.give_back()
        self.decoded.give_back()


class Evictable(Protocol):
    """Something in memory that can do with less."""

    cost: int
    """The bytes that it holds."""

    def forget_oldest(self) -> None:
        """Hold less."""


class Recent:
    """What the newest batches of all journals cost together. Over the limit, the largest forgets first."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.members: list[Evictable] = []

    @property
    def used(self) -> int:
        """Bytes."""
        return sum(member.cost for member in self.members)

    def make_room(self) -> None:
        """Have the largest forget until all together are within the limit."""
        while self.used > self.limit:
            max(self.members, key=lambda member: member.cost).forget_oldest()


class Memory:
    """The budget of one service. `total` is in bytes."""

    def __init__(self, total: int = DEFAULT_BUDGET) -> None:
        self.bodies = Pool(0)
        self.decoded = Pool(0)
        self.recent = Recent(0)
        self.deliveries = Pool(0)
        self.workers = 1
        """How many share what is for deliveries."""
        self.configure(total, 1)

    def configure(self, total: int, workers: int) -> None:
        """Change the budget, and the number of workers that share it."""
        self.total = total
        self.bodies.limit = total * BODIES
        self.decoded.limit = total * DECODED
        self.recent.limit = total * RECENT
        self.deliveries.limit = total * DELIVERIES
        self.workers = max(1, workers)

    @property
    def share(self) -> int:
        """What one delivery may cost, in bytes, unless its first batch costs more."""
        return max(1, int(self.deliveries.limit / self.workers))

    def parts(self) -> Iterable[tuple[str, float, int]]:
        """Each part's name, its limit and what of it is used, in bytes."""
        yield "bodies", self.bodies.limit, self.bodies.used
        yield "decoded", self.decoded.limit, self.decoded.used
        yield "recent", self.recent.limit, self.recent.used
        yield "deliveries", self.deliveries.limit, self.deliveries.used
