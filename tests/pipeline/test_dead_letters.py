"""Dead letters: kept once, within a limit, and handed over again when somebody asks for it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from pipeline import Delivery, Invalid, Permanent, Retryable
from pipeline.dead_letters import TABLES, DeadLetter, Evicted, Refused, ask_to_replay, bury, content, drop, listed
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability
from tests.pipeline.test_delivery import Sink, delivering
from tests.pipeline.test_handover import Taker, buried, refusing
from tests.pipeline.test_journal import append, batch_of
from tests.running import until

EARLIER = """
CREATE TABLE dead_letters (
    exporter TEXT NOT NULL, position INTEGER NOT NULL, at_ms INTEGER NOT NULL, items INTEGER NOT NULL,
    reason TEXT NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (exporter, position)) STRICT;
"""
MUCH = 2**30


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as opened:
        opened.executescript(TABLES)
        yield opened


def held(connection: sqlite3.Connection) -> list[tuple[str, int, str, object]]:
    return [(each.exporter, each.position, each.reason, content(connection, each.id)) for each in listed(connection)]


def test_what_is_refused_again_after_a_crash_is_kept_once(connection: sqlite3.Connection) -> None:
    refused = [Refused(7, batch_of(1), "a"), Refused(7, batch_of(2), "b"), Refused(8, batch_of(3), "c")]
    bury(connection, "exporter.one", refused, MUCH)
    before = listed(connection)
    bury(connection, "exporter.one", refused, MUCH)
    assert listed(connection) == before
    bury(connection, "exporter.two", refused[:1], MUCH)
    assert held(connection) == [
        ("exporter.one", 7, "a", batch_of(1)),
        ("exporter.one", 7, "b", batch_of(2)),
        ("exporter.one", 8, "c", batch_of(3)),
        ("exporter.two", 7, "a", batch_of(1)),
    ]


def test_what_is_refused_again_and_was_cut_otherwise_is_all_kept(connection: sqlite3.Connection) -> None:
    bury(connection, "exporter.one", [Refused(7, batch_of(3), "found")], MUCH)
    bury(connection, "exporter.one", [Refused(7, batch_of(1, 2, 3), "not looked into")], MUCH)
    assert held(connection) == [("exporter.one", 7, "not looked into", batch_of(1, 2, 3))]
    assert listed(connection)[0].items == 3


def test_the_oldest_are_deleted_and_counted_when_there_are_too_many(connection: sqlite3.Connection) -> None:
    size = len(msgspec.msgpack.encode(batch_of(0, 0)))
    for position in range(1, 6):
        evicted = bury(connection, "exporter.one", [Refused(position, batch_of(0, position), "no")], 3 * size)
        assert evicted == (Evicted(1, 2) if position > 3 else Evicted())
    assert [each.position for each in listed(connection)] == [3, 4, 5]
    both = [Refused(position, batch_of(0, position), "no") for position in (6, 7)]
    assert bury(connection, "exporter.two", both, 3 * size) == Evicted(2, 4)
    assert [each.position for each in listed(connection)] == [5, 6, 7]


def test_an_id_is_never_given_twice(connection: sqlite3.Connection) -> None:
    for position in (1, 2):
        bury(connection, "exporter.one", [Refused(position, batch_of(1), "no")], MUCH)
    assert drop(connection, [2, 99]) == 1
    bury(connection, "exporter.one", [Refused(3, batch_of(1), "no")], MUCH)
    assert [each.id for each in listed(connection)] == [1, 3]


def test_an_earlier_form_of_the_table_keeps_its_letters(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    payload = msgspec.msgpack.encode(batch_of(1, 2))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(EARLIER)
        for position, at_ms in ((9, 2000), (4, 1000)):
            connection.execute(
                "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?)",
                ("exporter.one", position, at_ms, 2, f"at {position}", payload),
            )
        connection.commit()
    for _ in range(2):
        file = JournalFile(path, Durability.POWER_LOSS)
        file.open()
        assert held(file._connection) == [
            ("exporter.one", 4, "at 4", batch_of(1, 2)),
            ("exporter.one", 9, "at 9", batch_of(1, 2)),
        ]
        assert [(each.id, each.items, each.at.timestamp()) for each in listed(file._connection)] == [
            (1, 2, 1.0),
            (2, 2, 2.0),
        ]
        file.close()


# What follows has a journal and exporters.


def letters(folder: Path) -> list[DeadLetter]:
    """The letters in the journal's file, by a connection of their own, as the command has one."""
    with closing(sqlite3.connect(folder / "events.db", timeout=5)) as connection:
        return listed(connection)


def mark(folder: Path, *ids: int) -> int:
    """What `metrics-service dead-letters replay` does."""
    with closing(sqlite3.connect(folder / "events.db", timeout=5)) as connection, connection:
        return ask_to_replay(connection, ids)


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
async def test_what_is_evicted_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with delivering(tmp_path, Taker(refusing(*range(9))), max_dead_letter_bytes=300) as (journal, delivery):
        for value in range(9):
            await append(journal, batch_of(value))
            await delivery.flush()
        kept = await buried(journal)
        evicted = 9 - len(kept)
        assert 0 < evicted < 9
        assert kept == [*range(evicted, 9)]
        assert delivery.workers[0].handover.evicted == evicted
        assert sum(each.size for each in letters(tmp_path)) <= 300
    assert caplog.text.count("deleted the oldest") == evicted


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
