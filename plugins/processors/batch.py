"""The last processor of every pipeline: makes batches durable before the sender is answered, and says when exporters are due.

The engine keeps the journal; this says how. The smallest YAML that works:

    processors:
      batch:
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline import (
    Buffer,
    ComponentConfig,
    Database,
    Declaration,
    Durability,
    Duration,
    JournalSettings,
    Signal,
    Size,
    hookimpl,
)


class BatchConfig(ComponentConfig):
    """How the journal is kept and when exporters that write out are due."""

    size: int = Field(100, ge=1)
    """Exporters are due when this many items wait for them; a trigger, never a cap."""
    flush_interval: Duration = 30.0
    """Exporters are due when something has waited this long for them, in seconds."""
    folder: Path | None = None
    """The folder of the journal; by default `<name of the database's file>-journal` beside it, and `metrics-journal` in the working
    directory where there is no database."""
    max_bytes: Size = Field(2**30, ge=2**20)
    """How much may wait for the slowest exporter, in bytes. Beyond that pushes are answered 503."""
    durability: Durability = Durability.POWER_LOSS
    """What an answered request survives: `power_loss`, `crash` (of the process), or `none`."""
    max_dead_letter_bytes: Size = 100 * 2**20
    """How much of what exporters refused for good is kept, in bytes; beyond that the oldest is deleted."""
    reserve: Size = 2**20
    """How much room the disk must have left for pushes to be accepted, in bytes. As much is kept in a file beside the journals, and given
    free when the disk is full, so that old data can still be deleted. 0: neither."""


FORMER = "journal"
"""What earlier versions called the folder, beside any database."""


class BatchProcessor(Buffer[BatchConfig]):
    """Makes batches durable, and says when exporters are due."""

    uses = (Database,)

    def journal_settings(self) -> JournalSettings:
        """See `Buffer.journal_settings`."""
        config = self.config
        return JournalSettings(
            self._folder(),
            config.size,
            config.flush_interval,
            config.max_bytes,
            config.durability,
            config.max_dead_letter_bytes,
            config.reserve,
        )

    def _database(self) -> Database | None:
        try:
            return self.host.extension(Database)
        except LookupError:
            return None

    def _folder(self) -> Path:
        if self.config.folder is not None:
            return self.config.folder
        if (database := self._database()) is None:
            return Path("metrics-journal")
        return database.path.with_name(f"{database.path.stem}-journal")

    def former_folder(self) -> Path | None:
        """See `Buffer.former_folder`."""
        folder, database = self._folder(), self._database()
        former = folder.with_name(FORMER)
        if self.config.folder is not None or database is None or not former.is_dir():
            return None
        if any(folder.glob("*.db")):
            database.refuse_journals(former, folder)
            return None
        return former if database.owns_journals(former) else None


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `batch`."""
    return [Declaration("batch", BatchProcessor, BatchConfig, takes=frozenset(Signal))]
