"""A program that runs a database as a service does: `python -m tests.plugins.extensions.database.hold PATH`.

Prints `started`, then the number of each row after it was committed, for as long as it lives. Row numbers that it says are
committed; there is always one more transaction that is not.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import anyio

from tests.plugins.extensions.databases import started_database

INSERT = "INSERT INTO exporter_cursors (exporter, pipeline, position) VALUES (?, ?, 1)"


async def hold(path: Path) -> None:
    async with started_database(path) as database:
        sys.stdout.write("started\n")
        sys.stdout.flush()
        for number in itertools.count(1):
            async with database.transaction() as connection:
                for exporter in ("row", "pair"):
                    await connection.execute(INSERT, (exporter, str(number)))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(hold, Path(sys.argv[1]))
