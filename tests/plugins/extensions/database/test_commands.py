"""`metrics-service migrate`, as a person types it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner

from pipeline import FileLock, StartError
from plugins.extensions.database.commands import migrate
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension
from plugins.extensions.database.migration_files import load_migrations
from tests.plugins.extensions.databases import started_database

LAST = load_migrations()[-1]
COUNT = len(load_migrations())


@dataclass
class Invocation:
    """What the command line gives to a command: the configuration, checked."""

    config: DatabaseConfig

    def config_of(self, component: type[Any]) -> DatabaseConfig:
        assert component is DatabaseExtension
        return self.config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


def run(path: Path, *words: str) -> str:
    """Run `migrate` with these words and give what it prints. Raises what it raises."""
    result = CliRunner().invoke(migrate, words, obj=Invocation(DatabaseConfig(path=path)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_status_of_a_file_that_is_not_there_says_so_and_makes_none(path: Path) -> None:
    assert run(path, "status").startswith(f"database: {path} (not there yet)\nschema version: 0 of {COUNT}\n")
    assert not path.exists()


def test_up_applies_everything_and_status_shows_it(path: Path) -> None:
    assert run(path, "up") == "".join(f"applied {migration}\n" for migration in load_migrations())
    assert run(path, "up") == "nothing to do\n"
    assert run(path, "status").endswith(f"schema version: {COUNT} of {COUNT}\nto be applied: nothing\n")


def test_up_to_a_number_stops_there_and_list_shows_what_is_left(path: Path) -> None:
    assert run(path, "up", "--to", "1") == "applied 0001_metrics\n"
    lines = run(path, "list").splitlines()
    assert [line.endswith("  to be applied") for line in lines] == [False] + [True] * (COUNT - 1)
    assert [line.split("  ")[0] for line in lines] == list(map(str, load_migrations()))


def test_down_takes_back_after_a_backup_that_holds_everything(path: Path) -> None:
    run(path, "up")
    output = run(path, "down", "1").splitlines()
    assert output[0].startswith(f"wrote the backup {path}.backup-{COUNT}-")
    assert output[1:] == [f"took back {LAST}"]
    backup = Path(output[0].removeprefix("wrote the backup "))
    assert "to be applied: nothing" in run(backup, "status")
    assert f"to be applied: {LAST}" in run(path, "status")
    assert run(path, "up") == f"applied {LAST}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("up", "--to", "99"), f"there is no migration 99: the last one is {LAST.version}"),
        (("down", "2"), "cannot take back 2 (applied migrations: 1)"),
    ],
)
def test_more_than_there_is_is_a_mistake_and_nothing_is_done(path: Path, words: tuple[str, ...], message: str) -> None:
    run(path, "up", "--to", "1")
    before = run(path, "list")
    with pytest.raises(StartError) as caught:
        run(path, *words)
    assert (str(caught.value), caught.value.exit_code) == (message, 2)
    assert run(path, "list") == before
    assert not list(path.parent.glob("*.backup*"))


@pytest.mark.parametrize("words", [("down", "1"), ("up", "--to", "99")])
def test_a_mistake_makes_no_database(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "folder" / "a.db"
    with pytest.raises(StartError, match=r"^there is no") as caught:
        run(path, *words)
    assert caught.value.exit_code == 2
    assert words[0] == "up" or str(caught.value) == f"there is no database {path} yet"
    assert list(tmp_path.iterdir()) == []


def test_down_is_refused_while_a_service_runs_and_up_is_not(path: Path) -> None:
    run(path, "up", "--to", "1")
    service = FileLock(Path(f"{path}.lock"))
    service.acquire()
    try:
        with pytest.raises(StartError, match=r"is held by process.*\(stop it first\)$"):
            run(path, "down", "1")
        assert "applied" in run(path, "up")
        assert not list(path.parent.glob("*.backup*"))
    finally:
        service.release()


def test_a_database_that_commands_migrated_is_one_that_a_service_takes(path: Path) -> None:
    run(path, "up")

    async def start() -> None:
        async with started_database(path, migrate="check"):
            pass

    anyio.run(start)


@pytest.mark.parametrize("words", [("status",), ("list",), ("up",), ("down", "1")])
def test_every_command_refuses_a_newer_schema_and_changes_nothing(path: Path, words: tuple[str, ...]) -> None:
    run(path, "up")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("INSERT INTO schema_migrations VALUES (9001, 'future', '', '')")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StartError, match="schema version 9001"):
        run(path, *words)
    assert path.read_bytes() == before


@pytest.mark.parametrize("words", [("down", "0"), ("down",), ("up", "--to", "0"), ("down", "-1"), ("up", "x")])
def test_words_that_make_no_sense_are_usage_errors(path: Path, words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(migrate, words, obj=Invocation(DatabaseConfig(path=path))).exit_code == 2
    assert not path.exists()


def test_create_writes_the_next_file_for_somebody_to_fill_in(tmp_path: Path) -> None:
    (tmp_path / "0006_six.sql").write_text("-- up\nSELECT 1;\n-- down\n")
    made = tmp_path / "0007_seven.sql"
    assert run(tmp_path, "create", "--folder", str(tmp_path), "seven") == f"wrote {made}\n"
    assert made.read_text().count("-- up\n") == made.read_text().count("-- down\n") == 1


def test_create_refuses_a_name_that_could_not_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="must be named like"):
        run(tmp_path, "create", "--folder", str(tmp_path), "../eight")
