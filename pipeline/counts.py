"""What became of what came into a pipeline, as plain integers: one set for each receiver or connector that feeds it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.books import Intake
from pipeline.data import Context, Outcome
from pipeline.errors import Refusal

if TYPE_CHECKING:
    from pipeline.journal import Journal

Changes = list[tuple[str, int]]
"""The processors that left items out of a request, with how many; negative if one added some."""
INTERNAL = "internal"
"""What it is called where refusals are counted that a component failed."""


@dataclass
class Counts:
    """What became of what came in, since the start. Items, but for `refused_requests`; by reason, or by processor.

    All of a request is counted at once, when it is certain what became of it.
    """

    from_outside: bool = True
    """Whether a receiver took it in that others send to; else a connector made it, or the service says it of itself."""
    received: int = 0
    """Good or bad, as far as it is known how many a request held."""
    accepted: int = 0
    """Answered as durable, or as filtered."""
    journaled: int = 0
    repeated: int = 0
    refused_items: dict[str, int] = field(default_factory=dict)
    refused_requests: dict[str, int] = field(default_factory=dict)
    filtered: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)

    def refuse(self, error: Exception, items: int) -> None:
        """Count a request of which nothing was accepted, with how many items it is known to have held."""
        self.received += items
        reason = reason_of(type(error)) if isinstance(error, Refusal) else INTERNAL
        self.refused_requests[reason] = self.refused_requests.get(reason, 0) + 1
        if items:
            self.refused_items[reason] = self.refused_items.get(reason, 0) + items

    def settle(self, items: int, context: Context, changes: Changes, answer: Outcome | Exception) -> None:
        """Count a request, of which `items` were left for the journal, by what became of it there."""
        if isinstance(answer, Exception):
            self.refuse(answer, context.received)
            return
        self.received += context.received
        if context.rejected:
            self.refused_items["invalid"] = self.refused_items.get("invalid", 0) + context.rejected
        for processor, gone in changes:
            by_processor = self.filtered if gone > 0 else self.added
            by_processor[processor] = by_processor.get(processor, 0) + abs(gone)
        if answer.repeated:
            self.repeated += items
        else:
            self.accepted += context.received - context.rejected
            self.journaled += items


def intake(journal: Journal) -> Intake:
    """What came into a pipeline since its journal was opened, and what became of it."""
    sources = journal.sources
    return Intake(
        received=sum(each.received for each in sources if each.from_outside),
        generated=sum(each.received for each in sources if not each.from_outside)
        + sum(sum(each.added.values()) for each in sources),
        filtered=sum(sum(each.filtered.values()) for each in sources),
        refused=sum(sum(each.refused_items.values()) for each in sources),
        repeated=sum(each.repeated for each in sources),
        journaled=journal.items - journal.items_before,
    )


def reason_of(refusal: type[Refusal]) -> str:
    """What a refusal is called where refusals are counted: `RateLimited` is `rate_limited`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", refusal.__name__).lower()
