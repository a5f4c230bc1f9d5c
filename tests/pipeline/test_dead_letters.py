"""Dead letters: kept once, within a limit, and handed over again when somebody asks for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from pipeline.dead_letters import TABLES, DeadLetter, Evicted, Refused, ask_to_replay, bury, content, drop, listed
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability
from tests.pipeline.test_delivery import delivering
from tests.pipeline.test_handover import Taker, buried, refusing
from tests.pipeline.test_journal import append, batch_of

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
