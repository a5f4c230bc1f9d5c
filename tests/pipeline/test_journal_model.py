"""The journal does what a list would, whatever is done to it in whatever order; and whoever holds it to that notices if it does not."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from pipeline import dead_letters
from pipeline.books import Cursor
from pipeline.data import Idempotency, Outcome
from pipeline.dead_letters import Refused
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability, Group
from pipeline.journal_reader import JournalReader
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.pipeline.journal_lives import JournalMachine

pytestmark = pytest.mark.timeout(sized(120, 7200))

SMALL = {
    "journal.GROUP_RECORDS": 4,
    "journal.GROUP_BYTES": 1000,
    "journal_tail.TAIL_ITEMS": 12,
    "journal_reader.READ_ROWS": 3,
    "journal_reader.READ_ITEMS": 10,
    "journal_file.TRIM_COMMITS": 3,
    "journal_file.TRIM_ROWS": 4,
}
"""Limits that a few pushes are beyond."""


class SmallLimits(JournalMachine):
    """A few pushes are several commits, and more than stays in memory."""

    tail_items = 12


class OftenCheckpointed(SmallLimits):
    """The write-ahead log begins anew all the time."""

    shrinks = False


def check(machine: type[JournalMachine], examples: int, steps: int = 30, *, control: bool = False) -> None:
    """Let hypothesis look for what is wrong. A control need not be found small."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=sized(1, 0) == 1 or control,
        phases=[Phase.generate] if control else list(Phase),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=not control,
        print_blob=not control,
    )
    try:
        run_state_machine_as_test(machine, settings=chosen)
    except Flaky as error:
        # What is wrong by chance need not be wrong again when hypothesis looks a second time.
        if control and (failure := failure_in(error)):
            raise failure from error
        raise


def failure_in(error: BaseException | None) -> AssertionError | None:
    """The assertion that failed first, wherever hypothesis has put it."""
    if error is None or isinstance(error, AssertionError):
        return error
    within = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next(filter(None, map(failure_in, [*within, error.__context__])), None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(f"pipeline.{name}", value)


@pytest.fixture(autouse=True)
def timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine sets it for each of its runs."""
    monkeypatch.setattr("pipeline.journal.CURSORS_SAVED_EVERY", 0.0)


def test_the_journal_is_its_model(report: Report) -> None:
    check(JournalMachine, sized(10, 900))
    report(examples=sized(10, 900))


@pytest.mark.usefixtures("small")
def test_the_journal_is_its_model_at_its_limits(report: Report) -> None:
    check(SmallLimits, sized(30, 1500))
    report(examples=sized(30, 1500))


@pytest.mark.usefixtures("small")
def test_the_journal_is_its_model_when_it_is_checkpointed_all_the_time(
    monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr("pipeline.journal_file.CHECKPOINT_BYTES", 20_000)
    check(OftenCheckpointed, sized(15, 600))
    report(examples=sized(15, 600))


class AnswersFromMemory(SmallLimits):
    """Answers first, and makes durable what it can."""

    durability = Durability.NONE


@pytest.mark.usefixtures("small")
def test_a_journal_that_answers_from_memory_is_found() -> None:
    with pytest.raises(
        (AssertionError, Flaky)
    ):  # what its thread was slow with once, it may be quick with the next time
        check(AnswersFromMemory, 20, control=True)


def counts_from_what_it_holds(file: JournalFile, read: Callable[[JournalFile], None] = JournalFile._read_state) -> None:
    """Positions are given again once all was trimmed."""
    read(file)
    query = "SELECT coalesce(max(first + count - 1), 0), coalesce(sum(length(payload)), 0) FROM journal"
    file.last, file.held = file._connection.execute(query).fetchone()


def trims_too_far(file: JournalFile, upto: int, trim: Callable[[JournalFile, int], bool] = JournalFile.trim) -> bool:
    """What somebody has yet to take goes."""
    return trim(file, upto + 3)


def never_subtracts(file: JournalFile, upto: int, trim: Callable[[JournalFile, int], bool] = JournalFile.trim) -> bool:
    """The bytes only grow."""
    held, more = file.held, trim(file, upto)
    file.held = held
    return more


def remembers_nothing(file: JournalFile, use: Idempotency, outcome: Outcome) -> None:
    """A repeated key is stored again."""


def saves_late(
    file: JournalFile,
    cursors: Mapping[str, Cursor],
    save: Callable[[JournalFile, Mapping[str, Cursor]], None] = JournalFile.save_cursors,
) -> None:
    """A cursor is saved if there was none."""
    save(file, {exporter: cursor for exporter, cursor in cursors.items() if exporter not in file.cursors()})


def buries_the_first(file: JournalFile, exporter: str, cursor: Cursor, refused: Sequence[Refused], most: int) -> None:
    """Of several dead letters one is kept."""
    dead_letters.bury(file._connection, exporter, refused[:1], most)
    file.save_cursors({exporter: cursor})


async def reads_whole_rows(
    reader: JournalReader,
    after: int,
    upto: int,
    most_cost: int,
    read: Callable[..., Awaitable[list[Group]]] = JournalReader.read,
) -> list[Group]:
    """An exporter that is in the middle of a row does not get the rest of it."""
    with closing(sqlite3.connect(f"file:{reader._path}?mode=ro", uri=True)) as connection:
        firsts = {first for (first,) in connection.execute("SELECT first FROM journal")}
    return [group for group in await read(reader, after, upto, most_cost) if group.first in firsts]


FAULTS = [
    (JournalFile, "_read_state", counts_from_what_it_holds, "positions|rows|cursors"),
    (JournalFile, "trim", trims_too_far, "trimmed too early"),
    (JournalFile, "trim", never_subtracts, "bytes"),
    (JournalFile, "remember", remembers_nothing, "repeated"),
    (JournalFile, "save_cursors", saves_late, "a cursor"),
    (JournalFile, "bury", buries_the_first, "dead letters"),
    (JournalReader, "read", reads_whole_rows, "nothing read|lost"),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("owner", "method", "wrong", "found"), FAULTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_journal_that_is_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, wrong: Callable[..., object], found: str
) -> None:
    monkeypatch.setattr(owner, method, wrong)
    with pytest.raises(AssertionError, match=found):
        check(SmallLimits, 60, control=True)
