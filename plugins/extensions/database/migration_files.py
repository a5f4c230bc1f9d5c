"""Reading migrations: numbered SQL files, each with a section that is applied and one that takes it back.

-- up
CREATE TABLE colours (name TEXT PRIMARY KEY) STRICT;

-- down
DROP TABLE colours;
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from pipeline import StartError

FOLDER = Path(__file__).parent / "migrations"

_FILE_NAME = re.compile(r"(\d{4})_([a-z][a-z0-9_]*)\.sql")
_MARKER = re.compile(r"--\s*(up|down)", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_UP_TO_SEMICOLON = re.compile(r"[^;]*;|[^;]+")
_ENDS_TRANSACTION = {"BEGIN", "COMMIT", "END", "ROLLBACK"}


@dataclass(frozen=True)
class Migration:
    """One step of the schema. `up` and `down` are single statements; `checksum` is the SHA-256 of the file's text."""

    version: int
    name: str
    up: tuple[str, ...]
    down: tuple[str, ...]
    checksum: str

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


def load_migrations(folder: Path = FOLDER) -> tuple[Migration, ...]:
    """All migrations in the folder, by number. Raises `StartError` for the first file that is wrong."""
    migrations: dict[int, Migration] = {}
    for path in sorted(folder.glob("*.sql")):
        try:
            migration = parse_migration(path.name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise StartError(f"{path.name}: must be UTF-8") from None
        if migration.version in migrations:
            raise StartError(f"{path.name}: number {migration.version} is taken by {migrations[migration.version]}")
        migrations[migration.version] = migration
    return tuple(migrations.values())


def parse_migration(file_name: str, text: str) -> Migration:
    """One migration from the name and the text of its file. Raises `StartError` that says what is wrong."""
    named = _FILE_NAME.fullmatch(file_name)
    if not named:
        raise StartError(f"{file_name}: must be named like 0005_colours.sql")
    if "\0" in text:
        raise StartError(f"{file_name}: must not hold a NUL character")
    sections = _sections(file_name, text)
    if not sections.get("up") or "down" not in sections:
        raise StartError(f"{file_name}: must have a section '-- up' with statements and a section '-- down'")
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return Migration(int(named[1]), named[2], tuple(sections["up"]), tuple(sections["down"]), checksum)


def _sections(file_name: str, text: str) -> dict[str, list[str]]:
    """The statements of each section. A marker is one only between statements, so a comment or a string may hold its text."""
    sections: dict[str, list[str]] = {}
    statements: list[str] | None = None
    pending = ""
    for line in text.split("\n"):
        marker = _MARKER.fullmatch(line.strip())
        if marker and not _without_comments(pending):
            name = marker[1].lower()
            if name in sections:
                raise StartError(f"{file_name}: has a second section '-- {name}'")
            statements = sections[name] = []
            pending = ""
            continue
        for part in _UP_TO_SEMICOLON.findall(line + "\n"):
            pending += part
            # Only SQLite knows whether a semicolon ends a statement or stands in a string, a comment or a trigger.
            if part.endswith(";") and sqlite3.complete_statement(pending):
                if statements is None:
                    raise StartError(f"{file_name}: has a statement before '-- up' or '-- down'")
                statements.append(_checked(file_name, pending))
                pending = ""
    if _without_comments(pending):
        raise StartError(f"{file_name}: the last statement has no end (a semicolon)")
    return sections


def _checked(file_name: str, statement: str) -> str:
    word = re.match(r"\w*", _without_comments(statement))
    if word and word[0].upper() in _ENDS_TRANSACTION:
        raise StartError(f"{file_name}: must not say {word[0]!r} (a migration is one transaction)")
    return statement.strip()


def _without_comments(sql: str) -> str:
    """What is left of SQL after the comments that it begins with; good enough to tell whether that is anything."""
    return _COMMENT.sub("", sql).strip()
