"""The real journal held against its model while nothing worse happens to it than a full disk: pushes, and exporters that take them."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import pipeline.journal
from pipeline import books
from pipeline.data import Batch, Context, Outcome
from pipeline.dead_letters import Refused
from pipeline.errors import Conflict, Overloaded
from pipeline.journal import Journal
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability
from pipeline.journal_settings import JournalSettings
from pipeline.room import ROOM_AGAIN
from tests.pipeline.journal_model import Model, Push, Row, bursts, pushes
from tests.running import until

T = TypeVar("T")
Answer = Outcome | BaseException | None
"""What a push got; None if the journal crashed before it answered."""

EXPORTERS = ("exporter.a", "exporter.b", "exporter.c")
MAX_DEAD_LETTER_BYTES = 400
shares = st.just(1.0) | st.floats(0, 1)
some = st.integers(0, len(EXPORTERS) - 1)
"""One of the exporters that there are."""
chosen = st.lists(st.sampled_from(EXPORTERS), min_size=1, unique=True)


class PushesAndExporters(RuleBasedStateMachine):
    """The journal and its model, side by side."""

    durability = Durability.POWER_LOSS
    tail_items = 20_000

    def __init__(self) -> None:
        super().__init__()
        self._root = tempfile.TemporaryDirectory()
        self._runner = asyncio.Runner()
        self._folders = 0
        self.journal: Journal | None = None
        self.model = Model()

    @initialize(max_bytes=st.sampled_from([600, 3000, 2**30]), save_every=st.sampled_from([0, 60]), exporters=chosen)
    def begin(self, max_bytes: int, save_every: float, exporters: list[str]) -> None:
        pipeline.journal.CURSORS_SAVED_EVERY = save_every
        self.max_bytes = max_bytes
        self._open(self._next_folder())
        self._place(exporters)

    # The journal, taken up and put down

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Let the event loop go on until this is done."""

        async def bounded() -> T:
            async with asyncio.timeout(20):
                return await coroutine

        return self._runner.run(bounded())

    def call(self, function: Callable[[JournalFile], T]) -> T:
        """Ask the file something, by way of the thread."""
        return self.run(self.opened.call(function))

    @property
    def opened(self) -> Journal:
        """The journal as it is now."""
        assert self.journal is not None
        return self.journal

    def look_at(self, what: Callable[[sqlite3.Connection], T]) -> T:
        """What the file says to a connection of its own."""
        with closing(sqlite3.connect(f"file:{self.opened.path}?mode=ro", uri=True)) as connection:
            return what(connection)

    def _next_folder(self) -> Path:
        self._folders += 1
        return Path(self._root.name) / str(self._folders)

    def _open(self, folder: Path) -> None:
        settings = JournalSettings(folder, 100, 1.0, self.max_bytes, self.durability, MAX_DEAD_LETTER_BYTES)
        self.journal = Journal("events", settings)
        self.run(self.journal.open())
        self.journal.subscribers.append(
            lambda group: self.model.rows.append(Row(group.first, group.last, group.items, group.size))
        )

    def teardown(self) -> None:
        if self.journal is not None:
            self.run(self.journal.close())
        self._runner.close()
        self._root.cleanup()

    def _place(self, exporters: Sequence[str]) -> None:
        """As delivery does at the start: who has a cursor goes on there, who is new begins at the end, who has gone gives up its place."""
        model, saved = self.model, self.look_at(books.saved)
        model.check_cursors(saved)
        # What was trimmed in a commit, the cursors that it saved had passed.
        model.trimmed = min((cursor.position for cursor in saved.values()), default=0)
        for gone in saved.keys() - set(exporters):
            self.call(partial(JournalFile.forget, exporter=gone))
        for new in set(exporters) - saved.keys():
            model.placed[new] = model.items(0, model.last)
            saved[new] = model.cursor(new, model.last)
            self.call(partial(JournalFile.save_cursors, cursors={new: saved[new]}))
        model.kept = {exporter: saved[exporter].position for exporter in exporters}
        model.saved, model.taken = dict(model.kept), dict(model.kept)
        self._keep()

    def _keep(self) -> None:
        taken, kept = min(self.model.taken.values()), min(self.model.kept.values())
        self.model.trimmed = max(self.model.trimmed, kept)
        self.opened.keep_from(taken, kept)

    # Pushes

    @rule(burst=bursts)
    def push_together(self, burst: list[Push]) -> None:
        contexts = [each.context() for each in burst]

        async def push() -> list[Outcome | BaseException]:
            appends = [self.opened.append(each.batch, context) for each, context in zip(burst, contexts, strict=True)]
            return await asyncio.gather(*appends, return_exceptions=True)

        held = self._held()
        self._settle(burst, contexts, self.run(push()), held)

    @rule(push=pushes)
    def push(self, push: Push) -> None:
        self.push_together([push])

    @rule(push=pushes, at=st.sampled_from(["write", "commit"]))
    def push_while_the_disk_fails(self, push: Push, at: str) -> None:
        assert self.opened._committer is not None
        file = self.opened._committer._file

        def fail(*arguments: object) -> None:
            delattr(file, at)
            raise sqlite3.OperationalError("disk I/O error")

        setattr(file, at, fail)
        self.push_together([push])
        vars(file).pop(at, None)

    def _held(self) -> tuple[int, int]:
        """How many bytes wait: at the least, if all is trimmed that may be, and at the most."""
        needed = min(self.model.kept.values())
        return sum(row.size for row in self.model.rows if row.last > needed), self.opened.bytes

    def _settle(
        self, burst: Sequence[Push], contexts: Sequence[Context], answers: Sequence[Answer], held: tuple[int, int]
    ) -> list[tuple[Push, Context]]:
        """Hold the answers to the model, in the order of the pushes. Returns the pushes that were not answered."""
        least, most = held
        unanswered = []
        for push, context, answer in zip(burst, contexts, answers, strict=True):
            full = isinstance(answer, Overloaded) and "full" in str(answer)
            assert most >= ROOM_AGAIN * self.max_bytes if full else least < self.max_bytes, "full"
            if full:
                continue
            size = len(self.opened._encoder.encode(push.batch))
            least, most = least + size, most + size
            if answer is None:
                unanswered.append((push, context))
            elif not (isinstance(answer, Overloaded) and "disk I/O error" in str(answer)):
                self.model.answer(push, context, answer)
        if any(isinstance(answer, Outcome | Conflict) for answer in answers):
            self.model.saved = dict(self.model.kept)  # a commit saves the cursors as well
        return unanswered

    # Exporters

    @rule(one=some, share=shares, durably=st.sampled_from([True, True, False]))
    def take(self, one: int, share: float, durably: bool) -> None:
        """An exporter takes some of what waits for it; if not durably, it will need that again after a crash."""
        model, exporter = self.model, self._exporter(one)
        model.taken[exporter] += int(share * (model.last - model.taken[exporter]))
        if durably:
            model.kept[exporter] = model.taken[exporter]
        self.opened.advance(exporter, model.cursor(exporter, model.kept[exporter]))
        self._keep()

    def _exporter(self, one: int) -> str:
        return list(self.model.taken)[one % len(self.model.taken)]

    @rule()
    def all_take_everything(self) -> None:
        for one in range(len(self.model.taken)):
            self.take(one, 1.0, durably=True)

    def bury(self, one: int, share: float, parts: int) -> None:
        """An exporter refuses some of what waits for it."""
        model, exporter = self.model, self._exporter(one)
        if model.taken[exporter] == model.last:
            return
        after = model.taken[exporter]
        upto = after + 1 + int(share * (model.last - after - 1))
        positions = [position for position in range(after + 1, upto + 1) if position in model.batches]
        refused = [Refused(place, model.batches[place], f"no {part}") for place in positions for part in range(parts)]
        cursor = model.cursor(exporter, upto)
        self.call(lambda file: file.bury(exporter, cursor, refused, MAX_DEAD_LETTER_BYTES))
        model.bury(exporter, refused, MAX_DEAD_LETTER_BYTES)
        model.taken[exporter] = model.kept[exporter] = model.saved[exporter] = upto
        self.opened.advance(exporter, cursor)
        self._keep()

    @rule(after=shares, most_items=st.none() | st.integers(1, 10))
    def read(self, after: float, most_items: int | None) -> None:
        position = int(after * self.model.last)
        delivery = self.run(self.opened.read(position, most_items))
        self.model.check_delivery(delivery, position, min(most_items or self.tail_items, self.tail_items))

    @rule(one=some)
    def read_all(self, one: int) -> None:
        """All that an exporter has not taken durably is there, batch for batch."""
        model, found = self.model, list[Batch]()
        position = begin = model.kept[self._exporter(one)]
        while position < model.last:
            delivery = self.run(self.opened.read(position))
            model.check_delivery(delivery, position, self.tail_items)
            found += delivery.batches
            position = delivery.upto
        assert found == [batch for place, batch in model.batches.items() if place > begin]

    @rule(share=shares, size=st.integers(0, 2000))
    def look(self, share: float, size: int) -> None:
        """What is said of the rows that are there is right."""
        position = int(share * self.model.last)
        items, upto, there = self.call(
            lambda file: (file.items_after(position), file.position_after(size, position), rows_of(file._connection))
        )
        gone = there[0].first - 1 if there else self.model.last
        assert items == self.model.items(max(position, gone), self.model.last)
        expected = 0
        for row in there:
            if size <= 0 or row.last > position:
                break
            expected, size = row.last, size - row.size
        assert upto == expected
        batch = self.opened.in_memory(position)
        assert batch is None or batch == self.model.batches[position]

    @precondition(lambda self: pipeline.journal.CURSORS_SAVED_EVERY == 0)
    @rule()
    def quiet(self) -> None:
        """When nothing happens, cursors are saved, and what every exporter has passed is trimmed."""
        journal, model = self.opened, self.model
        committer = journal._committer
        assert committer is not None
        self._keep()
        self.run(until(lambda: not journal._committing and journal._save is None and not committer.moved))
        model.saved = dict(model.kept)
        model.check_cursors(self.look_at(books.saved))
        assert all(row.last > min(model.kept.values()) for row in self.look_at(rows_of))


def rows_of(connection: sqlite3.Connection) -> list[Row]:
    """The groups of a journal's file."""
    query = "SELECT first, first + count - 1, items, length(payload) FROM journal ORDER BY first"
    return [Row(*row) for row in connection.execute(query)]
