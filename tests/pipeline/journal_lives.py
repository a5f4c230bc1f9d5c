"""The real journal held against its model across its ends: closed, crashed in the middle of a commit, with a torn write-ahead log.

A crash is a copy of the files as they are at that moment, from which the next journal is opened; the one that crashed answers
nobody any more.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from pipeline import books
from pipeline.data import Context
from pipeline.journal import Journal
from tests.pipeline.journal_crash import Crash, Moment, copy_files, truncate_wal
from tests.pipeline.journal_machine import Answer, PushesAndExporters, chosen, rows_of, shares, some
from tests.pipeline.journal_model import Letters, Push, bursts


class JournalMachine(PushesAndExporters):
    """The journal and its model, side by side, through many lives."""

    shrinks = True
    """Whether the write-ahead log may be cut anywhere: if it was copied into the main file and not begun anew, no true state is left."""

    def __init__(self) -> None:
        super().__init__()
        self.crash: Crash | None = None
        self.ends = {0}
        """Last positions that no row ends at: where it was closed, where it was skipped to."""
        self.letters_before: list[Letters] = [{}]
        """The dead letters after each burial since it was closed."""

    @rule(one=some, share=shares, parts=st.integers(1, 3))
    def bury_and_remember(self, one: int, share: float, parts: int) -> None:
        self.bury(one, share, parts)
        self.letters_before.append(dict(self.model.letters))

    @rule(exporters=chosen, skipped=st.sampled_from([0, 0, 3]))
    def restart(self, exporters: list[str], skipped: int) -> None:
        """Stop and start, perhaps with other exporters, perhaps beside a database that is ahead of the journal."""
        model, folder = self.model, self.opened.settings.folder
        self.run(self.opened.close())
        model.saved = dict(model.kept)
        self.ends, self.letters_before = {model.last}, [dict(model.letters)]
        self._open(folder)
        if skipped:
            model.last += skipped
            self.run(self.opened.skip_to(model.last))
            self.ends.add(model.last)
        self._place(exporters)

    @rule(burst=bursts, moment=st.sampled_from(Moment), after_commits=st.integers(0, 2), torn=st.none() | shares)
    def crash_in_a_commit(self, burst: list[Push], moment: Moment, after_commits: int, torn: float | None) -> None:
        """Nothing that was answered is missing; of the commit in hand there is all or nothing."""
        contexts, held = [each.context() for each in burst], self._held()
        crashed, folder = self.opened, self._next_folder()
        pushed = list(zip(burst, contexts, strict=True))
        answers, self.crash = self.run(_push_into(crashed, pushed, moment, after_commits))
        crash = self.crash
        unanswered = self._settle(burst, contexts, answers, held)
        if not crash.reached.is_set():  # there were fewer commits
            assert unanswered == []
            return
        path = copy_files(crashed.path, folder)
        if torn is not None:
            truncate_wal(path, crash.wal_bytes, torn)
        crash.release()
        self._leave(crashed)
        self._open(folder)
        before = self.model.last
        stored = self.opened.last - before
        assert stored in (0, crash.in_hand), "all or nothing of a commit"
        if moment is Moment.BEFORE:
            assert stored == 0, "stored too early"
        elif moment is Moment.UNANSWERED and torn is None:
            assert stored == crash.in_hand, "not durable"
        for push, context in unanswered:
            if stored or not self.model.is_new(push):
                stored -= self.model.is_new(push)
                self.model.answer(push, context)
        assert stored == 0
        if self.opened.last == before + crash.in_hand:
            self.model.rows += self.look_at(rows_of)[-1:]
        self._place(list(self.model.kept))

    @precondition(lambda self: self.shrinks)
    @rule(share=shares)
    def crash_with_a_shrunken_log(self, share: float) -> None:
        """What is left is the journal as it was after one of its commits."""
        model, crashed, folder = self.model, self.opened, self._next_folder()
        truncate_wal(self.call(lambda file: copy_files(crashed.path, folder)), 0, share)
        self._leave(crashed)
        self._open(folder)
        last = self.opened.last
        assert last in {row.last for row in model.rows} | self.ends
        assert last >= min(self.ends)
        model.forget_after(last)
        cursors = self.look_at(books.saved)
        assert all(cursor.position <= last for cursor in cursors.values())
        model.placed = {exporter: cursor.account.journaled_before for exporter, cursor in cursors.items()}
        model.saved = {exporter: cursor.position for exporter, cursor in cursors.items()}
        model.kept = dict(model.saved)
        model.letters = self.look_at(letters_of)
        assert model.letters in self.letters_before
        self._place(list(model.taken))

    def _leave(self, crashed: Journal) -> None:
        """End the thread of a journal that has crashed; what it still does is of no interest."""
        crashed.subscribers.clear()
        self.run(crashed.close())

    def teardown(self) -> None:
        if self.crash is not None:
            self.crash.release()
        super().teardown()

    @invariant()
    def the_file_holds_what_the_model_does(self) -> None:
        journal, model = self.opened, self.model
        with closing(sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True, isolation_level=None)) as connection:
            connection.execute("BEGIN")  # the thread may be trimming
            rows = rows_of(connection)
            ((last, held),) = connection.execute("SELECT last, bytes FROM state")
            cursors, lines = books.saved(connection), books.lines(connection)
            letters = letters_of(connection)
        model.check_rows(rows)
        assert last == journal.last == model.last, "positions"
        assert held == sum(row.size for row in rows), "bytes"
        assert journal._committing or journal.bytes == held, "bytes"
        model.check_cursors(cursors)
        assert [line.difference for line in lines] == [0] * len(lines), "the books"
        assert letters == model.letters, "dead letters"


async def _push_into(
    journal: Journal, burst: Sequence[tuple[Push, Context]], moment: Moment, after_commits: int
) -> tuple[list[Answer], Crash]:
    """Push until the journal has stopped there, or all are answered: what is answered by then, and where it stands."""
    crash = Crash(journal, moment, after_commits)
    pushing = [asyncio.ensure_future(journal.append(push.batch, context)) for push, context in burst]
    for each in pushing:
        each.add_done_callback(lambda task: task.cancelled() or task.exception())  # who crashed with it hears no more
    all_answered = asyncio.ensure_future(asyncio.wait(pushing))
    reached = asyncio.ensure_future(crash.reached.wait())
    await asyncio.wait([all_answered, reached], return_when=asyncio.FIRST_COMPLETED)
    for _ in range(3):
        await asyncio.sleep(0)  # those who were answered before it stopped hear of it
    if not crash.reached.is_set():
        crash.release()
        reached.cancel()
    return [(each.exception() or each.result()) if each.done() else None for each in pushing], crash


def letters_of(connection: sqlite3.Connection) -> Letters:
    """The dead letters of a journal's file."""
    query = "SELECT exporter, position, part, reason, payload FROM dead_letters ORDER BY id"
    return {tuple(letter): (reason, payload) for *letter, reason, payload in connection.execute(query)}
