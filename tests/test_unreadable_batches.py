"""A batch in the journal that cannot be read becomes a dead letter of every exporter, and costs no other batch of its row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Event, EventBatch
from pipeline.data import Batch
from pipeline.high_water import Mark
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability, Unreadable, decode_group, encode_group
from pipeline.salvage import set_aside
from tests.books import lines
from tests.running import running, until
from tests.test_cli import Command, command  # noqa: F401 - a fixture
from tests.test_cli_dead_letters import letters

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
EVENT = ["custom", 1.0, NOW, None, {"tool": "x"}, "{}"]

encode = msgspec.msgpack.Encoder().encode
RECEIVED = NOW.replace(microsecond=5)


def events(*items: Any, service: Any = "test") -> list[Any]:
    return ["events", service, list(items), NOW, "req_1"]


def with_field(place: int, value: Any) -> list[Any]:
    return [*EVENT[:place], value, *EVENT[place + 1 :]]


UNREADABLE: dict[str, tuple[Any, int]] = {
    "a value that is text": (events(with_field(1, "12.5"), EVENT), 2),
    "a value that is none": (events(with_field(1, None)), 1),
    "a type that is a number": (events(with_field(0, 5)), 1),
    "a date among the dimensions": (events(with_field(4, {"day": NOW})), 1),
    "a list among the dimensions": (events(EVENT, EVENT, with_field(4, {"tags": ["a"]})), 3),
    "an int as a name": (events(with_field(4, {1: "x"})), 1),
    "an event that is none": (events(None, EVENT), 2),
    "metadata that is a list": (events(with_field(5, [1])), 1),
    "a service that is a number": (events(EVENT, service=5), 1),
    "a time that is text": (events(with_field(2, "yesterday")), 1),
    "points that are text": (["metrics", b"", "3", NOW], 0),
    "another tag": (["other", "test", [EVENT], NOW], 0),
    "none": (None, 0),
    "a list of batches": ([events(EVENT)], 0),
}
"""What versions before this one stored of what plugins produced, and how many items it is known to hold; 0 for none."""


def good(value: float) -> EventBatch:
    return EventBatch("test", [Event("custom", value, NOW)], NOW, "req_1")


class Counted:
    """Stands for a batch with so many items where a row is written."""

    def __init__(self, items: int) -> None:
        self.items = items

    def __len__(self) -> int:
        return self.items


def write_row(path: Path, *batches: tuple[Any, int] | EventBatch) -> None:
    """Write a row as an earlier version did: it encoded whatever it was given."""
    file = JournalFile(path, Durability.POWER_LOSS)
    file.open()
    encoded = [encode(each if isinstance(each, EventBatch) else each[0]) for each in batches]
    counted: Any = [each if isinstance(each, EventBatch) else Counted(each[1] or 4) for each in batches]
    file.write(encoded, counted)
    file.note()
    file.close()


@pytest.mark.anyio
async def test_an_unreadable_batch_is_a_dead_letter_of_each_exporter_and_no_other_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics-journal" / "events.db"
    async with running(tmp_path) as service:
        assert (await service.push({"type": "custom", "value": -1})).status_code == 200
        await service.flush()
    values = iter(range(1000))
    for number, bad in enumerate(UNREADABLE.values()):
        write_row(path, *(good(next(values)) for _ in range(number % 3)), bad, good(next(values)))
    write_row(path, *UNREADABLE.values())
    write_row(path, good(next(values)))
    async with running(tmp_path) as service:
        await service.flush()
        count = next(values)
        assert service.rows("SELECT value FROM metrics ORDER BY id") == [(float(value),) for value in range(-1, count)]
        assert (await service.client.get("/health")).json()["status"] == "healthy"
    expected = [items or 4 for _, items in UNREADABLE.values()]
    # The other batches of the last row leave 4 items for each batch that cannot be counted.
    for exporter in ("exporter.sqlite", "connector.series"):
        found = [letter for letter in letters(path) if letter.exporter == exporter]
        assert [letter.items for letter in found] == expected * 2
        assert all(letter.reason.startswith("it cannot be read: ") for letter in found)
        (line,) = (line for line in lines(path) if line.exporter == exporter)
        assert (line.account.dead_lettered, line.account.sent, line.account.missing) == (
            2 * sum(expected),
            count + 1,
            0,
        )
        assert (line.pending, line.difference) == (0, 0)


@pytest.mark.anyio
async def test_its_dead_letter_can_be_listed_and_shown_and_stays_when_it_is_replayed(
    tmp_path: Path,
    command: Command,  # noqa: F811
) -> None:
    path, database = tmp_path / "dev_metrics-journal" / "events.db", str(tmp_path / "dev_metrics.db")
    async with running(tmp_path, SQLITE_DB_PATH=database) as service:
        await service.flush()
    write_row(path, UNREADABLE["a value that is text"])
    async with running(tmp_path, SQLITE_DB_PATH=database) as service:
        await service.flush()
    result = command("dead-letters", "list", "--exporter", "sqlite", "--json")
    (letter,) = json.loads(result.out)
    assert letter["items"] == 2
    assert letter["reason"] == "it cannot be read: Expected `float`, got `str` - at `$[2][0][1]`"
    shown = json.loads(command("dead-letters", "show", letter["id"]).out)
    assert shown["batch"] is None
    assert shown["unreadable"] == "Expected `float`, got `str` - at `$[2][0][1]`"
    assert shown["content"][2][0][:2] == ["custom", "12.5"]
    assert command("dead-letters", "replay", letter["id"]).code == 0
    async with running(tmp_path, SQLITE_DB_PATH=database):
        with closing(sqlite3.connect(path, timeout=5)) as connection:
            marked = "SELECT count(*) FROM dead_letters WHERE replay = 1"
            await until(lambda: connection.execute(marked).fetchone() == (0,))
    assert [each.items for each in letters(path)] == [2, 2]


def test_a_salvaged_journal_keeps_the_rows_with_unreadable_batches(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    write_row(path, good(1), *UNREADABLE.values(), good(2))
    file = JournalFile(path, Durability.POWER_LOSS)
    file.open()
    items = file.items
    file.close()
    path.with_suffix(".mark").unlink()
    set_aside(path, Mark())
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT count, items FROM journal").fetchall()
        assert rows == [(len(UNREADABLE) + 2, items)]


anything: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=3),
    max_leaves=10,
)
mutations: Any = st.sampled_from([raw for raw, _ in UNREADABLE.values()]) | anything


@given(st.lists(mutations | st.builds(good, st.floats(allow_nan=False)), max_size=6), st.integers(0, 40))
def test_a_row_is_read_to_the_last_good_batch_and_every_item_is_counted(row: list[Any], more: int) -> None:
    wanted = [each for each in row if isinstance(each, EventBatch)]
    found: list[Batch | Unreadable] = decode_group(encode_group([encode(each) for each in row]), len(wanted) + more)
    assert len(found) == len(row)
    for each, read in zip(row, found, strict=True):
        if isinstance(each, EventBatch):
            assert read == each
        elif isinstance(read, Unreadable):
            assert read.payload == encode(each)
            assert read.items >= 0


@pytest.mark.parametrize(
    "damage", [lambda row: row[:-1], lambda row: b"\xc1" + row[1:], lambda row: b""], ids=["cut", "byte", "empty"]
)
def test_a_payload_that_is_not_a_row_is_still_damage(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_group(damage(encode_group([encode(good(1)), encode(good(2))])))
