"""What waits in a journal for one exporter, in items and in bytes.

Items are counted exactly. An exporter moves on by batches, of which the journal keeps no sizes: bytes are exact for stretches of about a
mebibyte, and within one taken to be spread evenly over its items.
"""

from __future__ import annotations

from collections import deque

STRETCH_BYTES = 2**20
"""So a journal that is full has no more than a few thousand stretches."""


class Waiting:
    """First what was there before, then what comes in."""

    def __init__(self, items: int = 0, size: int = 0) -> None:
        self.items = items
        self._stretches: deque[tuple[int, int]] = deque([(items, size)])

    @property
    def bytes(self) -> int:
        """As they are in the journal."""
        return sum(size for _, size in self._stretches)

    def add(self, items: int, size: int) -> None:
        """Something has come in."""
        self.items += items
        if self._stretches and self._stretches[-1][1] + size <= STRETCH_BYTES:
            before, held = self._stretches.pop()
            self._stretches.append((before + items, held + size))
        else:
            self._stretches.append((items, size))

    def append(self, other: Waiting) -> None:
        """Add newer batches, which were counted separately."""
        self.items += other.items
        self._stretches.extend(other._stretches)

    def pass_over(self, items: int) -> None:
        """The exporter has moved on by so many."""
        self.items -= items
        while items and self._stretches:
            held, size = self._stretches.popleft()
            if held > items:
                self._stretches.appendleft((held - items, size - size * items // held))
            items -= min(items, held)
