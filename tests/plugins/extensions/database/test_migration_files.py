"""The parser of migration files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import StartError
from plugins.extensions.database.migration_files import load_migrations, parse_migration

STATEMENTS = st.sampled_from(
    [
        "CREATE TABLE a (b TEXT);",
        "INSERT INTO a VALUES ('one; two');",
        "INSERT INTO a VALUES ('it''s\n-- down\n;');",
        'CREATE TABLE "semi;colon" ("-- up" TEXT);',
        "CREATE TABLE c (d TEXT -- a comment; with a semicolon\n);",
        "CREATE TABLE e (\n-- down\nf TEXT);",
        "SELECT 1 /* ; */;",
        "/* first\n-- down\n */ SELECT 2;",
        "-- it's a comment\nSELECT 3;",
        "CREATE TRIGGER g AFTER INSERT ON a BEGIN DELETE FROM a; UPDATE a SET b = ';'; END;",
    ]
)
SEPARATORS = st.sampled_from([" ", "\n", "\n\n", "\n   "])


@given(st.lists(STATEMENTS, min_size=1), st.lists(STATEMENTS), SEPARATORS)
def test_every_statement_comes_back_whole_and_in_its_section(up: list[str], down: list[str], separator: str) -> None:
    text = f"-- About it.\n-- up\n{separator.join(up)}\n-- down\n{separator.join(down)}\n"
    migration = parse_migration("0007_seven.sql", text)
    assert migration.up == tuple(up)
    assert migration.down == tuple(down)
    assert (migration.version, migration.name) == (7, "seven")


@given(st.text(alphabet=st.sampled_from("-;'\"/*\n up down begin select\0é")))
def test_any_text_is_parsed_into_complete_statements_or_refused_in_one_line(text: str) -> None:
    try:
        migration = parse_migration("0001_a.sql", text)
    except StartError as error:
        refusal = str(error)
    else:
        assert migration.up
        assert all(sqlite3.complete_statement(statement) for statement in migration.up + migration.down)
        return
    assert refusal.startswith("0001_a.sql: ")
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-- up\nSELECT 1;", "section '-- down'"),
        ("-- up\n-- down\nSELECT 1;", "section '-- up' with statements"),
        ("-- up\nSELECT 1\n-- down\n", "has no end"),
        ("-- up\nSELECT 1;\n-- down\nSELECT 'open;", "has no end"),
        ("SELECT 1;\n-- up\nSELECT 1;\n-- down\n", "before '-- up'"),
        ("-- up\nSELECT 1;\n-- up\nSELECT 1;\n-- down\n", "second section '-- up'"),
        ("-- up\n-- so\nCommit;\n-- down\n", "must not say 'Commit'"),
        ("-- up\nSELECT '\0';\n-- down\n", "NUL"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(StartError, match=problem):
        parse_migration("0001_a.sql", text)


@pytest.mark.parametrize("name", ["1_a.sql", "0001-a.sql", "0001_A.sql", "0001_.sql", "a.sql"])
def test_a_file_name_without_number_and_name_is_refused(name: str) -> None:
    with pytest.raises(StartError, match="must be named like"):
        parse_migration(name, "-- up\nSELECT 1;\n-- down\n")


def test_two_files_with_one_number_are_refused(tmp_path: Path) -> None:
    for name in ("0001_a.sql", "0001_b.sql"):
        (tmp_path / name).write_text("-- up\nSELECT 1;\n-- down\n")
    with pytest.raises(StartError, match=r"0001_b.sql: number 1 is taken by 0001_a"):
        load_migrations(tmp_path)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_bytes(b"-- up\nSELECT '\xff';\n-- down\n")
    with pytest.raises(StartError, match=r"0001_a.sql: must be UTF-8"):
        load_migrations(tmp_path)


def test_the_line_ending_does_not_change_the_checksum(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_bytes(b"-- up\r\nSELECT 1;\r\n-- down\r\n")
    assert (
        load_migrations(tmp_path)[0].checksum == parse_migration("0001_a.sql", "-- up\nSELECT 1;\n-- down\n").checksum
    )


def test_the_shipped_migrations_are_numbered_without_gaps() -> None:
    assert [migration.version for migration in load_migrations()] == list(range(1, len(load_migrations()) + 1))
