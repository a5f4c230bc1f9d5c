"""What a journal should be, as a list of batches and a few dictionaries; and what hypothesis pushes into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from hypothesis import strategies as st

from pipeline.books import Account, Cursor
from pipeline.data import Batch, Context, Delivery, Event, EventBatch, Idempotency, MetricBatch, Outcome
from pipeline.dead_letters import Refused
from pipeline.errors import Conflict
from tests.pipeline.test_journal import NOW

encode = msgspec.msgpack.Encoder().encode


class Push(NamedTuple):
    """One request: what it holds, and its idempotency key with the digest of its body, if it has one."""

    batch: Batch
    key: str | None
    digest: bytes

    def context(self) -> Context:
        """Of a request in which one item was bad, so that there is more to remember than a number."""
        context = Context()
        context.received = len(self.batch) + 1
        context.reject([f"metrics[{len(self.batch)}].value: is missing"])
        if self.key is not None:
            context.idempotency = Idempotency("owner", self.key, self.digest)
        return context


def event_batch(values: list[float]) -> EventBatch:
    """An event for each value."""
    return EventBatch("test", [Event("custom", value, NOW, metadata={"n": [value]}) for value in values], NOW)


def metric_batch(points: int, request: bytes) -> MetricBatch:
    """OTLP that nobody decodes."""
    return MetricBatch(request, points, NOW)


numbers = st.integers(-(2**31), 2**31).map(float)
batches = st.builds(event_batch, st.lists(numbers, min_size=1, max_size=6)) | st.builds(
    metric_batch, st.integers(1, 6), st.binary(max_size=300)
)
pushes = st.builds(
    Push, batches, st.none() | st.sampled_from(["k1", "k2", "k3"]), st.sampled_from([b"one", b"one", b"other"])
)
bursts = st.lists(pushes, min_size=1, max_size=12)


class Row(NamedTuple):
    """A group as its row has it."""

    first: int
    last: int
    items: int
    size: int


LetterId = tuple[str, int, int]
"""A dead letter: its exporter, the position of its batch, and which part of that it is."""
Letters = dict[LetterId, tuple[str, bytes]]
"""Reason and content of each, the oldest first."""


@dataclass
class Model:
    """What the journal should be."""

    last: int = 0
    batches: dict[int, Batch] = field(default_factory=dict)
    """By position; one that was skipped has none."""
    rows: list[Row] = field(default_factory=list)
    """Every group that was ever stored."""
    answers: dict[str, tuple[bytes, Outcome, int]] = field(default_factory=dict)
    """Of each idempotency key's first use: the digest, the answer, the position."""
    taken: dict[str, int] = field(default_factory=dict)
    """Up to where each exporter has taken what there is."""
    kept: dict[str, int] = field(default_factory=dict)
    """Up to where each needs the journal no more."""
    saved: dict[str, int] = field(default_factory=dict)
    """Where its cursor is at the least, should there be a crash."""
    placed: dict[str, int] = field(default_factory=dict)
    """How many items there had been when it was placed."""
    trimmed: int = 0
    """Up to where the journal may have forgotten."""
    letters: Letters = field(default_factory=dict)

    def answer(self, push: Push, context: Context, answer: Outcome | BaseException | None = None) -> None:
        """A push has been looked at by the journal: hold its answer to what it should be, if it got one, and store it if it is new."""
        used = self.answers.get(push.key) if push.key is not None else None
        expected = context.outcome(context.received - context.rejected) if used is None else used[1]
        if used is not None and used[0] != push.digest:
            assert answer is None or isinstance(answer, Conflict), f"repeated: {answer}"
            return
        if answer is not None:
            assert isinstance(answer, Outcome), answer
            assert answer.repeated == (used is not None), f"repeated: {answer}"
            assert msgspec.structs.replace(answer, repeated=False) == expected, "another answer"
        if used is None:
            self.last += 1
            self.batches[self.last] = push.batch
            if push.key is not None:
                self.answers[push.key] = (push.digest, expected, self.last)

    def items(self, after: int, upto: int) -> int:
        """How many items were stored between those positions."""
        return sum(len(batch) for position, batch in self.batches.items() if after < position <= upto)

    def cursor(self, exporter: str, position: int) -> Cursor:
        """What is to be saved for an exporter that has taken everything up to there."""
        before = self.placed[exporter]
        return Cursor(position, Account(before, sent=self.items(0, position) - before))

    def check_cursors(self, cursors: Mapping[str, Cursor]) -> None:
        """Each is where its exporter has been since the last commit, with what it had taken then."""
        assert cursors.keys() == self.kept.keys(), "cursors"
        for exporter, cursor in cursors.items():
            assert self.saved[exporter] <= cursor.position <= self.kept[exporter], "a cursor"
            assert cursor == self.cursor(exporter, cursor.position), "an account"

    def is_new(self, push: Push) -> bool:
        """Whether a push with its key would be stored."""
        return push.key is None or push.key not in self.answers

    def check_rows(self, rows: Sequence[Row]) -> None:
        """The rows of the file are all that were stored, but for the oldest, as far as every exporter has passed them."""
        gone = len(self.rows) - len(rows)
        assert gone >= 0, "rows that were never stored"
        assert self.rows[gone:] == rows, "other rows than were stored"
        assert all(row.last <= self.trimmed for row in self.rows[:gone]), "trimmed too early"
        for row in rows:
            held = [self.batches[position] for position in range(row.first, row.last + 1)]
            assert row.size == 5 + sum(len(encode(batch)) for batch in held), "size"
            assert row.items == sum(map(len, held)), "items"

    def check_delivery(self, delivery: Delivery, after: int, most_items: int) -> None:
        """What was read follows that position, and is what was stored there."""
        assert delivery.after == after
        if after >= self.last:
            assert (delivery.upto, list(delivery.batches)) == (after, [])
            return
        assert after < delivery.upto <= self.last, "nothing read"
        positions = range(after + 1, delivery.upto + 1)
        if delivery.batches:
            assert list(delivery.batches) == [self.batches.get(position) for position in positions], "read another"
            assert delivery.items <= most_items or len(delivery.batches) == 1, "read too much"
        else:
            lost = [position for position in positions if position in self.batches and position > self.trimmed]
            assert lost == [], "lost"

    def bury(self, exporter: str, refused: Sequence[Refused], max_bytes: int) -> None:
        """Keep dead letters: the newest whatever its size, and as many of those before it as there is room for."""
        parts: dict[int, int] = {}
        for position, batch, reason in refused:
            parts[position] = parts.get(position, -1) + 1
            self.letters[exporter, position, parts[position]] = (reason, encode(batch))
        room, kept = max_bytes, list[tuple[str, int, int]]()
        for letter, (_, payload) in reversed(self.letters.items()):
            room -= len(payload)
            if room < 0 and kept:
                break
            kept.append(letter)
        self.letters = {letter: what for letter, what in self.letters.items() if letter in kept}

    def forget_after(self, last: int) -> None:
        """The file is as it was when that was the last position."""
        self.last = last
        self.rows = [row for row in self.rows if row.last <= last]
        self.batches = {position: batch for position, batch in self.batches.items() if position <= last}
        self.answers = {key: used for key, used in self.answers.items() if used[2] <= last}
