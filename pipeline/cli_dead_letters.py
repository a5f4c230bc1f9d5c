"""`metrics-service dead-letters`: look at what exporters refused for good, hand it over again, or delete it.

The commands open the journals' files themselves, beside the service or without one. Nobody checkpoints beside the service: what
happens when the last connection closes, which SQLite does for itself, happens only when there is no service.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from pipeline import dead_letters, replay
from pipeline.component import Kind
from pipeline.dead_letter_views import Kept, as_found, described, plain, table
from pipeline.errors import USER_MISTAKE, StartError
from pipeline.files import CANNOT_CREATE
from pipeline.invocation import Invocation
from pipeline.journal_access import Files, journal_files, opened
from pipeline.journal_format import decode_batch

_all = click.option("--all", "everything", is_flag=True, help="All of them, or all of --exporter.")
_exporter = click.option("--exporter", help="Only those that this exporter or connector refused.")
_ids = click.argument("ids", metavar="[ID]...", nargs=-1)


@click.group("dead-letters")
def dead_letter_commands() -> None:
    """What exporters refused for good: look at it, hand it over again, delete it.

    An ID is PIPELINE:NUMBER, as `list` shows it.
    """


@dead_letter_commands.command("list")
@_exporter
@click.option("--json", "as_json", is_flag=True, help="As a JSON array, with the whole reasons.")
@click.pass_obj
def list_letters(invocation: Invocation, exporter: str | None, as_json: bool) -> None:
    """Show what is kept, the oldest first."""
    letters, problems = _listed(journal_files(invocation))
    letters = _of(letters, exporter, invocation)
    if as_json:
        click.echo(json.dumps([described(each) for each in letters], indent=2))
    elif letters:
        click.echo("\n".join(table(letters)))
    elif not problems:
        click.echo("There are no dead letters.")
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if problems:
        raise SystemExit(problems[0].exit_code)


@dead_letter_commands.command()
@click.argument("id")
@click.pass_obj
def show(invocation: Invocation, id: str) -> None:
    """Show what one holds and why it was refused, as JSON."""
    files = journal_files(invocation)
    (chosen,) = _chosen(files, [id])
    with opened(files[chosen.pipeline], "ro") as connection:
        payload = dead_letters.raw_content(connection, chosen.letter.id)
    if payload is None:
        raise StartError(f"{chosen.id}: it is gone since a moment ago", USER_MISTAKE)
    try:
        shown: dict[str, Any] = {"batch": plain(decode_batch(payload))}
    except msgspec.MsgspecError as error:
        try:  # a batch with invalid types can be shown, but not delivered
            shown = {"batch": None, "unreadable": str(error), "content": as_found(payload)}
        except ValueError:
            raise StartError(f"{chosen.id}: what it holds is damaged: {error}", CANNOT_CREATE) from None
    click.echo(json.dumps({**described(chosen), **shown}, indent=2))


@dead_letter_commands.command("replay")
@_ids
@_all
@_exporter
@click.pass_obj
def replay_letters(invocation: Invocation, ids: Sequence[str], everything: bool, exporter: str | None) -> None:
    """Have the service hand them to their exporters again. What is taken is deleted, what is refused again is kept."""
    files = journal_files(invocation)
    letters = _asked_for(invocation, files, ids, everything, exporter)
    with _writing(files, letters) as chosen:
        count = sum(dead_letters.ask_to_replay(connection, numbers) for connection, numbers in chosen)
    click.echo(
        f"{_counted(count)} marked: a running service hands over what is marked within {replay.LOOK_EVERY:g} seconds if the "
        "exporter works, the next one when it starts."
    )


@dead_letter_commands.command("drop")
@_ids
@_all
@_exporter
@click.option("--yes", is_flag=True, help="Do not ask before all are deleted.")
@click.pass_obj
def drop_letters(invocation: Invocation, ids: Sequence[str], everything: bool, exporter: str | None, yes: bool) -> None:
    """Delete them."""
    files = journal_files(invocation)
    letters = _asked_for(invocation, files, ids, everything, exporter)
    if everything and letters and not yes:
        items = sum(each.letter.items for each in letters)
        click.confirm(f"Delete {_counted(len(letters))} for ever, with {items} items?", abort=True)
    with _writing(files, letters) as chosen:
        count = sum(dead_letters.drop(connection, numbers) for connection, numbers in chosen)
    click.echo(f"{_counted(count)} deleted.")


def _counted(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


@contextmanager
def _writing(files: Files, letters: Sequence[Kept]) -> Iterator[list[tuple[sqlite3.Connection, list[int]]]]:
    """A transaction in each of the files that hold these, with their numbers there; committed when everything is done."""
    chosen = []
    with ExitStack() as stack:
        for pipeline, path in files.items():
            numbers = [each.letter.id for each in letters if each.pipeline == pipeline]
            if numbers:
                connection = stack.enter_context(opened(path, "rw"))
                connection.execute("PRAGMA wal_autocheckpoint=0")
                connection.execute("BEGIN IMMEDIATE")
                chosen.append((connection, numbers))
        yield chosen
        for connection, _ in chosen:
            connection.execute("COMMIT")


def _asked_for(
    invocation: Invocation, files: Files, ids: Sequence[str], everything: bool, exporter: str | None
) -> list[Kept]:
    if bool(ids) == everything:
        raise click.UsageError("give IDs, or --all (`metrics-service dead-letters list` shows them)")
    if ids and exporter is not None:
        raise click.UsageError("--exporter goes with --all")
    if ids:
        return _chosen(files, ids)
    letters, problems = _listed(files)
    if problems:
        raise problems[0]
    return _of(letters, exporter, invocation)


def _listed(files: Files) -> tuple[list[Kept], list[StartError]]:
    """What the files hold, and why some of them cannot be read."""
    letters: list[Kept] = []
    problems: list[StartError] = []
    for pipeline, path in files.items():
        try:
            letters += _in_file(pipeline, path)
        except StartError as error:
            problems.append(error)
    return letters, problems


def _of(letters: Sequence[Kept], exporter: str | None, invocation: Invocation) -> list[Kept]:
    """Those of an exporter, which may be one that is no longer configured."""
    found = [each for each in letters if exporter in (None, each.exporter)]
    if found or exporter is None:
        return found
    configured = [id for kind, id in invocation.load().components if kind in (Kind.EXPORTER, Kind.CONNECTOR)]
    if exporter not in configured:
        known = ", ".join(sorted({*configured, *(each.exporter for each in letters)}))
        raise click.UsageError(f"--exporter: there is no exporter {exporter!r} (must be one of {known})")
    return found


def _in_file(pipeline: str, path: Path) -> list[Kept]:
    if not path.exists():
        return []
    with opened(path, "ro") as connection:
        return [Kept(pipeline, each) for each in dead_letters.listed(connection)]


def _chosen(files: Files, ids: Sequence[str]) -> list[Kept]:
    """The letters with these ids. Ends with a line for each that is none."""
    found: dict[str, Kept] = {}
    mistakes = []
    for id in ids:
        pipeline, _, number = id.rpartition(":")
        if not pipeline or not re.fullmatch("[0-9]{1,18}", number):
            mistakes.append(f"{id!r} is no id (must be PIPELINE:NUMBER, for example {next(iter(files))}:1)")
        elif pipeline not in files:
            mistakes.append(f"{id!r}: there is no pipeline {pipeline!r} (must be one of {', '.join(files)})")
        else:
            known = {each.letter.id: each for each in _in_file(pipeline, files[pipeline])}
            if (letter := known.get(int(number))) is not None:
                found[letter.id] = letter
            else:
                mistakes.append(
                    f"{id!r}: there is no such dead letter (`metrics-service dead-letters list` shows them)"
                )
    for mistake in mistakes:
        click.echo(f"error: {mistake}", err=True)
    if mistakes:
        raise SystemExit(USER_MISTAKE)
    return list(found.values())
