"""Dead letters that are handed over again: each once, to its own exporter, whatever happens meanwhile."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import Delivery, Invalid, Permanent, Retryable
from tests.pipeline.test_dead_letters import letters, mark
from tests.pipeline.test_delivery import Sink, delivering
from tests.pipeline.test_handover import Taker, refusing
from tests.pipeline.test_journal import append, batch_of
from tests.running import until


class Moody(Taker):
    """Refuses what `mood` says, which a test may change."""

    def __init__(self, mood: Callable[[Delivery], None]) -> None:
        super().__init__(lambda delivery: self.mood(delivery))
        self.mood = mood


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for marked letters all the time."""
    monkeypatch.setattr("pipeline.replay.LOOK_EVERY", 0.01)


@pytest.mark.anyio
@pytest.mark.usefixtures("soon")
async def test_a_letter_that_is_marked_is_handed_to_its_exporter_and_gone(tmp_path: Path) -> None:
    sink, other = Moody(refusing(2, 4)), Sink("other")
    async with delivering(tmp_path, sink, other, size=100) as (journal, delivery):
        await append(journal, batch_of(1, 2, 3, 4))
        await delivery.flush()
        handover, tries = delivery.workers[0].handover, len(sink.tries)
        sink.mood = lambda delivery: None
        first, second = letters(tmp_path)
        assert mark(tmp_path, second.id) == 1
        await until(lambda: handover.replayed == 1)
        assert sink.tries[tries:] == [1]
        assert sink.taken[-1] == 4
        assert other.deliveries == [[1]], "it is nobody else's"
        await until(lambda: letters(tmp_path) == [first])
        assert (handover.sent, handover.dead_lettered, delivery.workers[0].position) == (2, 2, 1)


@pytest.mark.anyio
@pytest.mark.usefixtures("soon")
async def test_a_letter_is_handed_over_once_although_the_journal_cannot_note_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Moody(refusing(2))
    async with delivering(tmp_path, sink, size=100) as (journal, delivery):
        await append(journal, batch_of(1, 2, 3))
        await delivery.flush()
        tries = len(sink.tries)
        sink.mood = lambda delivery: None
        (letter,) = letters(tmp_path)
        deny = "CREATE TRIGGER deny BEFORE DELETE ON dead_letters BEGIN SELECT RAISE(ABORT, 'not now'); END"
        with closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as other:
            other.execute(deny)
            mark(tmp_path, letter.id)
            await until(lambda: caplog.text.count("cannot replay dead letters, will try again") >= 3)
            other.execute("DROP TRIGGER deny")
        await until(lambda: letters(tmp_path) == [])
        assert len(sink.tries) == tries + 1


@pytest.mark.anyio
async def test_a_letter_that_was_marked_while_no_service_ran_is_handed_over_at_the_start(tmp_path: Path) -> None:
    async with delivering(tmp_path, Taker(refusing(2)), size=100) as (journal, delivery):
        await append(journal, batch_of(1, 2, 3))
        await delivery.flush()
    (letter,) = letters(tmp_path)
    mark(tmp_path, letter.id)
    sink = Taker()
    async with delivering(tmp_path, sink) as (_, delivery):
        await sink.holds(1)
        assert sink.taken == [2]


@pytest.mark.anyio
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Permanent("still no"), "still no"),
        (ExceptionGroup("of a task group", [Permanent("still no")]), "still no"),
        (Invalid("nothing in it"), "the next pipeline refuses it: nothing in it"),
    ],
)
async def test_a_letter_that_is_refused_again_stays_with_the_new_reason(
    tmp_path: Path, error: Exception, reason: str
) -> None:
    def refuse(delivery: Delivery) -> None:
        raise error

    sink = Moody(refusing(2))
    async with delivering(tmp_path, sink, size=100) as (journal, delivery):
        await append(journal, batch_of(1, 2, 3))
        await delivery.flush()
        sink.mood, tries = refuse, len(sink.tries)
        (before,) = letters(tmp_path)
        mark(tmp_path, before.id)
        await until(lambda: not letters(tmp_path)[0].replay)
        assert letters(tmp_path) == [before._replace(reason=reason)]
        assert sink.tries[tries:] == [1]
        assert (delivery.workers[0].handover.replayed, delivery.workers[0].failure) == (0, None)


@pytest.mark.anyio
@pytest.mark.usefixtures("soon")
async def test_an_exporter_that_fails_meanwhile_is_not_bothered_and_gets_its_letters_when_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    down, asked = True, list[bool]()

    def refuse_while_down(delivery: Delivery) -> None:
        if down:
            asked.append(delivery.upto > delivery.after)
            raise Retryable("down")

    sink, works = Moody(refusing(1)), Taker(refusing(1))
    works.id = "works"
    async with delivering(tmp_path, sink, works) as (journal, delivery):
        await append(journal, batch_of(1))
        await delivery.flush()
        sink.mood = refuse_while_down
        await append(journal, batch_of(2))
        await until(lambda: delivery.workers[0].failure is not None)
        works.refuse = lambda delivery: None
        mark(tmp_path, *(each.id for each in letters(tmp_path)))
        await until(lambda: [each.exporter for each in letters(tmp_path)] == ["exporter.sink"])
        assert delivery.workers[1].handover.replayed == 1
        assert all(asked), "no letter was among it"
        assert 1 not in sink.taken
        down = False
        await until(lambda: delivery.workers[0].handover.replayed == 1)
        assert sorted(sink.taken) == [1, 2]


@pytest.mark.anyio
@pytest.mark.usefixtures("soon")
async def test_a_letter_whose_exporter_fails_on_it_alone_is_kept_and_tried_again_and_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = 0

    def fail_sometimes(delivery: Delivery) -> None:
        nonlocal failed
        if failed < 3:
            failed += 1
            raise Retryable("not now")

    sink, works = Moody(refusing(1, 2)), Taker(refusing(1, 2))
    works.id = "works"
    async with delivering(tmp_path, sink, works, size=100) as (journal, delivery):
        await append(journal, batch_of(1, 2))
        await delivery.flush()
        sink.mood, works.refuse = fail_sometimes, lambda delivery: None
        mark(tmp_path, *(each.id for each in letters(tmp_path)))
        await until(lambda: [each.handover.replayed for each in delivery.workers] == [2, 2])
        assert (sink.taken, works.taken) == ([1, 2], [1, 2])
        await until(lambda: not letters(tmp_path))
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warned == ["cannot replay dead letter 1, will try again: not now"] * 3, "one a look, not one a letter"


@pytest.mark.anyio
@pytest.mark.usefixtures("soon")
async def test_a_letter_that_is_damaged_keeps_none_behind_it(tmp_path: Path) -> None:
    sink = Moody(refusing(1, 2))
    async with delivering(tmp_path, sink, size=100) as (journal, delivery):
        await append(journal, batch_of(1, 2))
        await delivery.flush()
        sink.mood = lambda delivery: None
        await journal.call(
            lambda file: file._connection.execute("UPDATE dead_letters SET payload = x'c1' WHERE id = 1")
        )
        mark(tmp_path, 1, 2)
        await sink.holds(1)
        assert sink.taken == [2]
        await until(lambda: len(letters(tmp_path)) == 1)
        (damaged,) = letters(tmp_path)
        assert (damaged.id, damaged.replay) == (1, False)
        assert damaged.reason.startswith("what it holds is damaged: ")
