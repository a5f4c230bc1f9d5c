"""What goes to the committer, and what one commit brings back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data import Batch, Idempotency, Outcome
from pipeline.journal_format import Group
from pipeline.memory import RequestHold

Told = Callable[[Outcome | Exception], None]


@dataclass(slots=True)
class Record:
    """One batch that waits to be durable. `outcome` is what its request is answered when it is."""

    batch: Batch
    encoded: bytes
    outcome: Outcome
    future: asyncio.Future[Outcome]
    idempotency: Idempotency | None
    told: Told
    """Told the answer once, also if nobody waits for it any more."""
    cost: int = 0
    """The memory of the decoded batch, in bytes."""
    hold: RequestHold | None = None
    """Its share of the memory budget until it is settled."""


def first_of(records: list[Record], size: int) -> tuple[list[Record], int]:
    """The first of these, as many as have that many bytes together or just more; and their bytes."""
    count = held = 0
    while count < len(records) and held < size:
        held += len(records[count].encoded)
        count += 1
    return records[:count], held


Answers = list[tuple[Record, Outcome | Exception]]


@dataclass
class Commit:
    """What one commit did, on its way back to the event loop: the group that it stored, if any, and who is answered what."""

    group: Group | None
    answers: Answers
    held: int = 0
    """How many bytes the journal holds now."""
    more_to_trim: bool = False
    forgotten_keys: int = 0
    """How many idempotency keys were forgotten before their day, since there was no room."""

    def settle(self) -> None:
        """Answer all who wait. Those who gave up waiting are stored all the same."""
        for record, answer in self.answers:
            if record.hold is not None:
                record.hold.give_back()
            record.told(answer)
            if record.future.done():
                continue
            if isinstance(answer, Exception):
                record.future.set_exception(answer)
            else:
                record.future.set_result(answer)
