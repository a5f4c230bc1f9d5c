"""The newest groups of a journal, decoded, in memory: exporters that keep up read no disk."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from pipeline.data import Batch, Delivery
from pipeline.journal_format import Group, Unreadable
from pipeline.memory import Recent

TAIL_ITEMS = 20_000
"""How many items are kept; also what one delivery holds at the most, but for a single larger batch."""


class Tail:
    """Consecutive groups, the last of them the newest of the journal.

    What they cost counts against `recent`, the part of the memory budget that all journals share.
    """

    def __init__(self) -> None:
        self.cost = 0
        """What they cost together, in bytes."""
        self._recent = Recent(math.inf)
        self._groups: list[Group] = []
        self._items = 0

    def join(self, recent: Recent) -> None:
        """Count against that."""
        self._recent = recent
        recent.members.append(self)

    def leave(self) -> None:
        """Forget everything, and count no longer. Safe twice."""
        self._forget(len(self._groups))
        if self in self._recent.members:
            self._recent.members.remove(self)

    def add(self, group: Group) -> None:
        """Keep a new group, and forget the oldest as far as the limits require it."""
        self._groups.append(group)
        self._items += group.items
        self.cost += sum(group.costs)
        count, items = 0, self._items
        while items > TAIL_ITEMS:
            items -= self._groups[count].items
            count += 1
        self._forget(count)
        self._recent.make_room()

    def forget_oldest(self) -> None:
        """Forget one group."""
        self._forget(1)

    def forget_upto(self, position: int) -> None:
        """Forget the groups that every exporter has passed."""
        self._forget(bisect.bisect_right(self._groups, position, key=lambda group: group.last))

    def _forget(self, count: int) -> None:
        for group in self._groups[:count]:
            self._items -= group.items
            self.cost -= sum(group.costs)
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


def next_delivery(
    pipeline: str,
    after: int,
    groups: Sequence[Group],
    most_items: int | None = None,
    most_cost: float = math.inf,
) -> tuple[Delivery, int]:
    """What follows `after` in these groups, and what it costs in memory: at most `most_items`, and `TAIL_ITEMS`, and bytes, unless the
    first batch is larger.

    What is missing there, since it was trimmed or is damaged, comes as a delivery without batches, and so does a batch that cannot be read,
    as an `UnreadableDelivery`.
    """
    batches: list[Batch] = []
    most = min(most_items or TAIL_ITEMS, TAIL_ITEMS)
    items, cost, upto = 0, 0, after
    for group in groups:
        if group.first > upto + 1 or not group.batches:
            if batches:
                break
            return Delivery(pipeline, after, group.last if not group.batches else group.first - 1, ()), 0
        for place in range(upto + 1 - group.first, len(group.batches)):
            batch, own = group.batches[place], group.costs[place] if group.costs else 0
            over = items + len(batch) > most or cost + own > most_cost
            if batches and (over or isinstance(batch, Unreadable)):
                return Delivery(pipeline, after, upto, batches), cost
            if isinstance(batch, Unreadable):
                return UnreadableDelivery(pipeline, after, upto + 1, (), unreadable=batch), own
            items, cost = items + len(batch), cost + own
            batches.append(batch)
            upto += 1
    return Delivery(pipeline, after, upto, batches), cost
