"""The journals' files for commands, which run beside the service or without one, and never checkpoint beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from pipeline import books, dead_letters
from pipeline.command_host import CommandHost
from pipeline.errors import USER_MISTAKE, StartError
from pipeline.files import CANNOT_CREATE
from pipeline.graph import Graph
from pipeline.invocation import Invocation
from pipeline.journal_format import SCHEMA

BUSY_SECONDS = 5

Files = Mapping[str, Path]
"""The journal's file of every pipeline, whether it exists or not."""


def journal_files(invocation: Invocation) -> Files:
    """The files of a configuration. Nothing is opened or made."""
    configuration = invocation.load()
    host = CommandHost(configuration)
    pipelines = Graph(configuration, host, tuple(host.extensions)).pipelines
    return {each.id: each.present_path() for each in pipelines}


@contextmanager
def opened(path: Path, mode: Literal["ro", "rw"]) -> Iterator[sqlite3.Connection]:
    """A connection to one that exists. Raises `StartError`, also for what SQLite says while it is used."""
    try:
        address = f"{path.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_SECONDS)) as connection:
            ((form,),) = connection.execute("PRAGMA user_version")
            if form > SCHEMA:
                raise StartError(f"the journal {path} has form {form}, of a later version than this", USER_MISTAKE)
            if dead_letters.is_outdated(connection) or books.is_outdated(connection):
                raise StartError(
                    f"the journal {path} has the form of an earlier version (start the service once, which updates it)",
                    USER_MISTAKE,
                )
            yield connection
    except sqlite3.Error as error:
        raise StartError(f"cannot use the journal {path}: {error}", CANNOT_CREATE) from None
