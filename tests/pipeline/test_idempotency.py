"""How long idempotency keys are remembered, and how many: by a clock that is moved here, in a real file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.data import Idempotency, Outcome
from pipeline.errors import Conflict
from pipeline.idempotency import Keys
from pipeline.journal_format import TABLES

DAY = 24 * 3600
FAULTS = ["metrics[0].value: must be a number from -1e12 to 1e12, got " + "x" * 150] * 100


class Clock:
    """Seconds, as the test has them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def use_of(name: str) -> Idempotency:
    return Idempotency("owner", name, b"d" * 32)


def answer_of(name: str, errors: Sequence[str] = ()) -> Outcome:
    return Outcome(1, len(errors), tuple(errors), f"req_{name}")


class Remembering:
    """What the committer does with keys, a commit for each call."""

    def __init__(self, connection: sqlite3.Connection, most: int = 1_000_000, most_bytes: int = 2**28) -> None:
        self.connection = connection
        self.clock = Clock()
        self.keys = Keys(self.clock, most, most_bytes)

    def push(self, *names: str, errors: Sequence[str] = ()) -> int:
        """Of those, all of them new. Returns how many others were forgotten early."""
        self.connection.execute("BEGIN IMMEDIATE")
        early = self.keys.forget(self.connection, len(names))
        for name in names:
            assert self.keys.remembered(self.connection, use_of(name)) is None
            self.keys.remember(self.connection, use_of(name), answer_of(name, errors))
        self.connection.execute("COMMIT")
        return early

    def remembers(self, name: str) -> bool:
        """Whether it does; then the answer is the first one."""
        found = self.keys.remembered(self.connection, use_of(name))
        assert found is None or (isinstance(found, Outcome) and found.request_id == f"req_{name}" and found.repeated)
        return found is not None

    def held(self) -> tuple[int, int]:
        """Keys and bytes, which are counted as they are."""
        ((keys, size),) = self.connection.execute("SELECT keys, bytes FROM remembered")
        query = (
            "SELECT count(*), total(2 * length(owner || key) + length(digest) + length(outcome) + 32) FROM idempotency"
        )
        assert self.connection.execute(query).fetchone() == (keys, size)
        return keys, size


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as connection:
        connection.executescript("PRAGMA synchronous=OFF;" + TABLES)
        yield connection


def test_a_key_is_remembered_for_a_day_and_no_longer(connection: sqlite3.Connection) -> None:
    one = Remembering(connection)
    one.push("a")
    one.clock.now += DAY - 1
    assert one.remembers("a")
    assert isinstance(one.keys.remembered(connection, Idempotency("owner", "a", b"other")), Conflict)
    one.clock.now += 2
    assert not one.remembers("a")
    one.push("a")
    assert one.remembers("a")
    assert one.held()[0] == 1


def test_time_in_which_no_service_runs_makes_no_key_older_whatever_the_wall_clock_says(
    connection: sqlite3.Connection,
) -> None:
    one = Remembering(connection)
    one.push("a")
    for stamp in ("at_ms - 50 * 365 * 86400000", "at_ms + 75 * 365 * 86400000"):
        # What the wall clock was then has nothing to do with what it is now.
        connection.execute(f"UPDATE idempotency SET at_ms = {stamp}")
        later = Remembering(connection)
        assert later.remembers("a")
        later.clock.now += DAY - 1
        assert later.remembers("a")
    later.clock.now += 2
    assert not later.remembers("a")


def test_the_age_goes_on_after_a_restart_and_the_order_stays(connection: sqlite3.Connection) -> None:
    first = Remembering(connection)
    first.push("a")
    first.clock.now += DAY / 2
    first.push("b")
    second = Remembering(connection)
    second.clock.now += DAY / 2 - 1
    assert second.remembers("a")
    second.clock.now += 2
    assert not second.remembers("a")
    assert second.remembers("b")


def test_after_a_pause_no_commit_deletes_more_than_two_for_each_that_comes(connection: sqlite3.Connection) -> None:
    one = Remembering(connection)
    one.push(*(f"old-{number}" for number in range(100)))
    one.clock.now += 2 * DAY
    assert one.push("new-1") == 0, "none of them before its day"
    assert one.held()[0] == 99
    assert not any(one.remembers(f"old-{number}") for number in range(100))
    for number in range(2, 60):
        one.push(f"new-{number}")
    assert one.held()[0] == 59
    assert all(one.remembers(f"new-{number}") for number in range(1, 60))


def test_of_too_many_keys_the_oldest_are_forgotten_and_counted(connection: sqlite3.Connection) -> None:
    one = Remembering(connection, most=20)
    early = 0
    for number in range(50):
        one.clock.now += 1
        early += one.push(f"{number}")
        assert one.held()[0] <= 21, "the last one comes on top"
    held = one.held()[0]
    assert held >= 20
    assert early == 50 - held
    assert [number for number in range(50) if one.remembers(f"{number}")] == list(range(50 - held, 50))


def test_answers_with_many_faults_are_bounded_by_their_bytes(connection: sqlite3.Connection) -> None:
    most = 2**20
    one = Remembering(connection, most_bytes=most)
    one.push(*(f"small-{number}" for number in range(2_000)))
    for number in range(200):
        one.clock.now += 1
        one.push(f"large-{number}", errors=FAULTS)
        assert one.held()[1] < most + 30_000
    assert one.remembers("large-199")
    assert not one.remembers("small-0")


def test_numbers_that_were_damaged_are_right_again(connection: sqlite3.Connection) -> None:
    one = Remembering(connection, most=20)
    one.push("a", "b")
    connection.execute("UPDATE remembered SET keys = 1000, bytes = -5")
    assert one.push("c") == 2
    assert one.held()[0] == 1


def test_a_journal_of_an_earlier_version_is_counted_once(connection: sqlite3.Connection) -> None:
    one = Remembering(connection)
    one.push("a", "b", errors=FAULTS)
    connection.executescript("DROP TABLE remembered; DROP TRIGGER remembered_grows; DROP TRIGGER remembered_shrinks")
    for _ in range(2):
        connection.executescript(TABLES)
        assert one.held()[0] == 2
    one.push("c")
    assert one.remembers("a")
