"""`metrics-service dead-letters`, as a person types it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import sqlite3
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import (
    Event,
    EventBatch,
    MetricBatch,
)
from pipeline.data import Batch
from pipeline.dead_letters import DeadLetter, Refused, bury, listed
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability
from pipeline.testing.doubles import metric_batch
from tests.pipeline.test_dead_letters import EARLIER
from tests.pipeline.test_journal import NOW, batch_of
from tests.test_cli import Command, command  # noqa: F401 - a fixture

THERE_IS_NONE = "there is no such dead letter (`metrics-service dead-letters list` shows them)"


def journal(folder: Path, pipeline: str = "events") -> Path:
    return folder / "dev_metrics-journal" / f"{pipeline}.db"


def put(path: Path, *refused: tuple[Batch, str], exporter: str = "exporter.sqlite") -> None:
    """Put letters into a journal, as the service does; makes the journal if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = JournalFile(path, Durability.POWER_LOSS)
        file.open()
        file.close()
    with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
        many = [Refused(number, batch, reason) for number, (batch, reason) in enumerate(refused, 100)]
        bury(connection, exporter, many, 2**30)


def letters(path: Path) -> list[DeadLetter]:
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        return listed(connection)


@pytest.fixture
def three(command: Command, tmp_path: Path) -> Path:  # noqa: F811
    """Three letters in the folder where the commands run, in the journals of two pipelines."""
    put(journal(tmp_path), (batch_of(1, 2), "SQLite refuses it"), (batch_of(3), "no"))
    put(journal(tmp_path, "metrics"), (metric_batch(1, 2, 3), "too many"), exporter="exporter.prometheus")
    return tmp_path


@pytest.mark.usefixtures("three")
def test_list_shows_them_as_a_table(command: Command) -> None:  # noqa: F811
    result = command("dead-letters", "list")
    assert (result.code, result.err) == (0, "")
    head, *lines = [re.split(r" {2,}", line) for line in result.out.splitlines()]
    assert head == ["ID", "EXPORTER", "ITEMS", "WHEN", "BYTES", "REPLAY", "REASON"]
    assert [(line[0], line[1], line[2], line[-1]) for line in lines] == [
        ("events:1", "sqlite", "2", "SQLite refuses it"),
        ("events:2", "sqlite", "1", "no"),
        ("metrics:1", "prometheus", "3", "too many"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", line[3]) for line in lines)


@pytest.mark.usefixtures("three")
def test_list_shows_those_of_one_exporter(command: Command) -> None:  # noqa: F811
    out = command("dead-letters", "list", "--exporter", "prometheus").out
    assert [line.split()[0] for line in out.splitlines()] == ["ID", "metrics:1"]
    assert command("dead-letters", "list", "--exporter", "series") == (0, "There are no dead letters.\n", "")
    unknown = command("dead-letters", "list", "--exporter", "sqlit")
    assert (unknown.code, unknown.out) == (2, "")
    assert "there is no exporter 'sqlit' (must be one of " in unknown.err
    assert "sqlite" in unknown.err


@pytest.mark.usefixtures("three")
def test_list_has_everything_as_json(command: Command, tmp_path: Path) -> None:  # noqa: F811
    put(journal(tmp_path), (batch_of(9), "x" * 1000), exporter="exporter.gone")
    command("dead-letters", "replay", "events:2")
    found = json.loads(command("dead-letters", "list", "--json").out)
    stored = [*letters(journal(tmp_path)), *letters(journal(tmp_path, "metrics"))]
    assert [each["id"] for each in found] == ["events:1", "events:2", "events:3", "metrics:1"]
    assert [each["bytes"] for each in found] == [each.size for each in stored]
    assert [each["at"] for each in found] == [each.at.isoformat() for each in stored]
    assert found[1] | {"bytes": 0, "at": ""} == {
        "id": "events:2", "pipeline": "events", "exporter": "sqlite", "position": 101, "at": "", "items": 1, "bytes": 0,
        "replay": True, "reason": "no",
    }  # fmt: skip
    assert found[2]["reason"] == "x" * 1000
    assert json.loads(command("dead-letters", "list", "--json", "--exporter", "series").out) == []


def test_a_reason_is_one_line_and_nothing_that_a_terminal_obeys(command: Command, tmp_path: Path) -> None:  # noqa: F811
    evil = "one\ntwo\x1b[2J\x9b31m\u202eright to left\u2028end \\ é"
    put(journal(tmp_path), (batch_of(1), evil))
    out = command("dead-letters", "list").out
    assert out.splitlines()[1].endswith(r"  one\ntwo\x1b[2J\x9b31m\u202eright to left\u2028end \ é")
    assert len(out.splitlines()) == 2
    shown = command("dead-letters", "show", "events:1").out
    assert json.loads(shown)["reason"] == evil
    assert shown.isascii()
    assert "\x1b" not in shown


def test_a_long_reason_is_cut_at_the_end_of_a_terminals_line_only(command: Command, tmp_path: Path) -> None:  # noqa: F811
    put(journal(tmp_path), (batch_of(1), "x" * 1000))
    assert "x" * 1000 in command("dead-letters", "list").out
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    called = [sys.executable, "-m", "pipeline.cli", "dead-letters", "list"]
    subprocess.run(called, stdout=its, env=environ, check=True, timeout=60)
    os.close(its)
    (_, line) = os.read(ours, 10_000).decode().splitlines()
    os.close(ours)
    assert len(line) == 100
    assert line.endswith("xxx…")


def test_without_a_journal_there_are_none_and_none_is_made(command: Command, tmp_path: Path) -> None:  # noqa: F811
    assert command("dead-letters", "list") == (0, "There are no dead letters.\n", "")
    assert command("dead-letters", "list", "--json").out == "[]\n"
    assert command("dead-letters", "replay", "--all").out.startswith("0 dead letters marked")
    assert command("dead-letters", "drop", "--all") == (0, "0 dead letters deleted.\n", "")
    assert command("dead-letters", "drop", "events:1").code == 2
    assert list(tmp_path.iterdir()) == []


def test_show_has_the_events_by_the_names_of_their_fields(command: Command, tmp_path: Path) -> None:  # noqa: F811
    event = Event("custom", 1.5, NOW, None, {"tool": "é"}, {"deep": [1, {"a": None}]})
    batch = EventBatch("test", [event], NOW, "req_1", "2.0", "instance", "key")
    put(journal(tmp_path), (batch, "no"))
    shown = json.loads(command("dead-letters", "show", "events:1").out)
    assert (shown["id"], shown["exporter"], shown["reason"], shown["items"]) == ("events:1", "sqlite", "no", 1)
    assert shown["batch"] == {
        "service": "test", "received_at": "2026-11-23T12:00:00Z", "request_id": "req_1", "version": "2.0",
        "instance_id": "instance", "key_service": "key",
        "events": [{
            "type": "custom", "value": 1.5, "timestamp": "2026-11-23T12:00:00Z", "duration_ms": None,
            "dimensions": {"tool": "é"}, "metadata": {"deep": [1, {"a": None}]},
        }],
    }  # fmt: skip


@pytest.mark.usefixtures("three")
def test_show_has_metrics_as_otlp(command: Command) -> None:  # noqa: F811
    batch = json.loads(command("dead-letters", "show", "metrics:1").out)["batch"]
    assert batch["points"] == 3
    (metric,) = batch["request"]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    assert metric["name"] == "test_total"
    assert [point["asDouble"] for point in metric["sum"]["dataPoints"]] == [1, 2, 3]


def test_show_has_the_bytes_of_metrics_that_are_none(command: Command, tmp_path: Path) -> None:  # noqa: F811
    put(journal(tmp_path, "metrics"), (MetricBatch(b"\xff\xff\xff", 2, NOW), "no"))
    assert json.loads(command("dead-letters", "show", "metrics:1").out)["batch"]["request"] == "////"


@pytest.mark.usefixtures("three")
def test_show_says_what_is_damaged(command: Command, tmp_path: Path) -> None:  # noqa: F811
    with closing(sqlite3.connect(journal(tmp_path))) as connection, connection:
        connection.execute("UPDATE dead_letters SET payload = x'c1'")
    result = command("dead-letters", "show", "events:1")
    assert (result.code, result.out) == (73, "")
    assert result.err.startswith("error: events:1: what it holds is damaged: ")


def test_replay_marks_those_that_are_named(command: Command, three: Path) -> None:  # noqa: F811
    result = command("dead-letters", "replay", "events:2", "metrics:1", "events:2")
    assert (result.code, result.err) == (0, "")
    assert re.match(r"2 dead letters marked: a running service .* within 5 seconds .* the next one ", result.out)
    marked = [each.replay for name in ("events", "metrics") for each in letters(journal(three, name))]
    assert marked == [False, True, True]
    table = [line.split() for line in command("dead-letters", "list").out.splitlines()]
    assert [line[0] for line in table if "marked" in line] == ["events:2", "metrics:1"]


def test_replay_and_drop_take_all_or_all_of_an_exporter(command: Command, three: Path) -> None:  # noqa: F811
    assert command("dead-letters", "replay", "--all", "--exporter", "sqlite").out.startswith("2 dead letters marked")
    assert [each.replay for each in letters(journal(three, "metrics"))] == [False]
    assert command("dead-letters", "replay", "--all").out.startswith("3 dead letters marked")
    assert [each.replay for each in letters(journal(three, "metrics"))] == [True]
    dropped = command("dead-letters", "drop", "--all", "--exporter", "sqlite", "--yes")
    assert dropped == (0, "2 dead letters deleted.\n", "")
    assert (letters(journal(three)), len(letters(journal(three, "metrics")))) == ([], 1)


def test_drop_deletes_those_that_are_named_and_asks_for_nothing(command: Command, three: Path) -> None:  # noqa: F811
    assert command("dead-letters", "drop", "events:1") == (0, "1 dead letter deleted.\n", "")
    assert [each.id for each in letters(journal(three))] == [2]


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 3), ("", 3)])
def test_drop_all_asks(
    command: Command, three: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, left: int  # noqa: F811
) -> None:  # fmt: skip
    (tmp_path / "answer").write_text(answer)
    with (tmp_path / "answer").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        result = command("dead-letters", "drop", "--all")
    assert "Delete 3 dead letters for ever, with 6 items? [y/N]" in result.out
    assert sum(len(letters(journal(three, name))) for name in ("events", "metrics")) == left
    assert result.code == (0 if left == 0 else 1)


@pytest.mark.parametrize("words", [["show"], ["replay"], ["drop"]])
def test_an_id_that_is_none_is_a_mistake_and_nothing_is_done(
    command: Command, three: Path, words: Sequence[str]  # noqa: F811
) -> None:  # fmt: skip
    before = [letters(journal(three, name)) for name in ("events", "metrics")]
    lines = {
        "events:9": f"'events:9': {THERE_IS_NONE}",
        "nothing:1": "'nothing:1': there is no pipeline 'nothing' (must be one of events, metrics)",
        "7": "'7' is no id (must be PIPELINE:NUMBER, for example events:1)",
        "events:x": "'events:x' is no id (must be PIPELINE:NUMBER, for example events:1)",
        "events:\u0661": "'events:\u0661' is no id (must be PIPELINE:NUMBER, for example events:1)",
    }
    for id, line in lines.items():
        assert command("dead-letters", *words, id) == (2, "", f"error: {line}\n")
    if words != ["show"]:
        all_lines = "".join(f"error: {line}\n" for line in lines.values())
        assert command("dead-letters", *words, "events:1", *lines, "metrics:1") == (2, "", all_lines)
    assert [letters(journal(three, name)) for name in ("events", "metrics")] == before


@pytest.mark.parametrize("words", [["replay"], ["drop", "--yes"]])
@pytest.mark.parametrize(
    "more", [[], ["events:1", "--all"], ["events:1", "--exporter", "sqlite"], ["--exporter", "sqlite"]]
)
def test_it_must_be_said_which(
    command: Command, three: Path, words: Sequence[str], more: Sequence[str]  # noqa: F811
) -> None:  # fmt: skip
    result = command("dead-letters", *words, *more)
    assert (result.code, result.out) == (2, "")
    assert "--all" in result.err
    assert [each.replay for each in letters(journal(three))] == [False, False]


def test_a_journal_of_an_earlier_version_is_named_and_keeps_no_other_from_being_shown(
    command: Command, three: Path  # noqa: F811
) -> None:  # fmt: skip
    with closing(sqlite3.connect(journal(three))) as connection:
        connection.executescript(f"DROP TABLE dead_letters; {EARLIER}")
    result = command("dead-letters", "list")
    assert result.code == 2
    assert [line.split()[0] for line in result.out.splitlines()] == ["ID", "metrics:1"]
    assert re.fullmatch(
        r"error: the journal dev_metrics-journal/events\.db has the form .*start the service once.*\n", result.err
    )
    for words in (["show", "events:1"], ["drop", "events:1"], ["drop", "--all", "--yes"], ["replay", "--all"]):
        result = command("dead-letters", *words)
        assert (result.code, result.out) == (2, "")
        assert "start the service once" in result.err
    assert len(letters(journal(three, "metrics"))) == 1


def test_a_journal_that_is_no_database_is_one_line(command: Command, three: Path) -> None:  # noqa: F811
    journal(three).write_bytes(b"no database" * 1000)
    result = command("dead-letters", "list")
    assert (result.code, result.err.count("\n")) == (73, 1)
    assert re.match(r"error: cannot use the journal .*events\.db: file is not a database", result.err)
    assert "metrics:1" in result.out


def test_a_journal_that_somebody_else_writes_to_all_the_time_is_one_line(
    command: Command, three: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.journal_access.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(journal(three, "metrics"), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        result = command("dead-letters", "drop", "--all", "--yes")
        assert (result.code, result.out) == (73, "")
        assert result.err.endswith("metrics.db: database is locked\n")
    assert len(letters(journal(three))) == 2, "what was begun in another file is undone"
