"""A service that is changed by a plugin: wrong on purpose, or more often at what it seldom does."""

from __future__ import annotations

from pathlib import Path

BUSY = """
import pipeline.delivery
import pipeline.journal_file
import plugins.connectors.series.connector
import plugins.extensions.database.extension
from pipeline import hookimpl
from plugins.extensions.database.connection import open_writer

pipeline.delivery.LOOK_AGAIN = 0.1
pipeline.journal_file.CHECKPOINT_BYTES = 2**18
pipeline.journal_file.TRIM_COMMITS = 8
plugins.connectors.series.connector.SAVE_EVERY = 0.1
plugins.extensions.database.extension.WAL_LIMIT = 2**18


@hookimpl
def declare_components():
    return []
"""
"""A plugin with which the service saves, trims and checkpoints all the time, so that cuts meet that too."""


def plugin(folder: Path, text: str) -> tuple[str, str]:
    """The arguments of a service with that plugin."""
    (folder / "plugins").mkdir()
    (folder / "plugins" / "changed.py").write_text(text)
    return "--plugins-dir", str(folder / "plugins")
