"""The newest groups of a journal, decoded, in memory: exporters that keep up read no disk."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from pipeline.data import Batch, Delivery
from pipeline.journal_format import Group, Unreadable

TAIL_ITEMS = 20_000
"""How many items are kept; also what one delivery holds at the most, but for a single larger batch."""
TAIL_BYTES = 16 * 2**20


class Tail:
    """Consecutive groups, the last of them the newest of the journal."""

    def __init__(self) -> None:
        self._groups: list[Group] = []
        self._items = 0
        self._bytes = 0

    def add(self, group: Group) -> None:
        """Keep a new group, and forget the oldest as far as the limits ask for it."""
        self._groups.append(group)
        self._items += group.items
        self._bytes += group.size
        count, items, size = 0, self._items, self._bytes
        while items > TAIL_ITEMS or size > TAIL_BYTES:
            items -= self._groups[count].items
            size -= self._groups[count].size
            count += 1
        self._forget(count)

    def forget_upto(self, position: int) -> None:
        """Forget the groups that every exporter has passed."""
        self._forget(bisect.bisect_right(self._groups, position, key=lambda group: group.last))

    def _forget(self, count: int) -> None:
        for group in self._groups[:count]:
            self._items -= group.items
            self._bytes -= group.size
        del self._groups[:count]

    def find(self, position: int) -> Batch | None:
        """The batch at that position, or None if it is not kept."""
        place = bisect.bisect_left(self._groups, position, key=lambda group: group.last)
        if place == len(self._groups) or self._groups[place].first > position:
            return None
        batch = self._groups[place].batches[position - self._groups[place].first]
        return None if isinstance(batch, Unreadable) else batch

    def after(self, position: int) -> list[Group] | None:
        """The groups that hold what follows that position, or None if the first of it is no longer kept."""
        if not self._groups or self._groups[0].first > position + 1:
            return None
        return self._groups[bisect.bisect_right(self._groups, position, key=lambda group: group.last) :]


class UnreadableDelivery(Delivery, frozen=True):
    """A delivery of one batch that cannot be read, and that no exporter can be given."""

    unreadable: Unreadable = Unreadable(b"", "", 0)

    @property
    def items(self) -> int:
        """How many events or data points the batch holds."""
        return self.unreadable.items


def next_delivery(pipeline: str, after: int, groups: Sequence[Group], most_items: int | None = None) -> Delivery:
    """What follows `after` in these groups, at the most `most_items`, and `TAIL_ITEMS`, unless the first batch is larger.

    What is missing there, since it was trimmed or is damaged, comes as a delivery without batches, and so does a batch that cannot be read,
    as an `UnreadableDelivery`.
    """
    batches: list[Batch] = []
    most = min(most_items or TAIL_ITEMS, TAIL_ITEMS)
    items, upto = 0, after
    for group in groups:
        if group.first > upto + 1 or not group.batches:
            if batches:
                break
            return Delivery(pipeline, after, group.last if not group.batches else group.first - 1, ())
        for batch in group.batches[upto + 1 - group.first :]:
            items += len(batch)
            if batches and (items > most or isinstance(batch, Unreadable)):
                return Delivery(pipeline, after, upto, batches)
            if isinstance(batch, Unreadable):
                return UnreadableDelivery(pipeline, after, upto + 1, (), unreadable=batch)
            batches.append(batch)
            upto += 1
    return Delivery(pipeline, after, upto, batches)
