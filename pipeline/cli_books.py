"""`metrics-service books`: what became of every item, by pipeline and exporter, and whether it adds up."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pipeline import books
from pipeline.invocation import Invocation
from pipeline.journal_access import Files, journal_files, opened

HEADS = ("pipeline", "exporter", "journaled", "sent", "dead-lettered", "dropped", "missing", "pending", "difference")
WIDTHS = (20, 28, *(max(12, len(head) + 1) for head in HEADS[2:]))


@click.command("books")
@click.pass_obj
def show_books(invocation: Invocation) -> None:
    """Show what became of every item, since its exporter was placed. Exit code 1 if something is not accounted for."""
    found = list(read(journal_files(invocation)))
    click.echo("".join(f"{head:<{width}}" for head, width in zip(HEADS, WIDTHS, strict=True)).rstrip())
    for pipeline, line in found:
        account = line.account
        counts = (line.journaled, account.sent, account.dead_lettered, account.dropped, account.missing, line.pending)
        cells = (pipeline, line.exporter, *counts, line.difference)
        click.echo("".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip())
    if any(line.difference for _, line in found):
        click.echo(
            "error: not everything is accounted for, which is a bug (please report it with these lines)", err=True
        )
        raise SystemExit(1)


def read(files: Files) -> Iterator[tuple[str, books.Line]]:
    """The books of every journal that there is, each as it is at one moment. Raises `StartError`."""
    for pipeline, path in files.items():
        if path.exists():
            with opened(path, "ro") as connection:
                connection.execute("BEGIN")
                yield from ((pipeline, line) for line in books.lines(connection))
