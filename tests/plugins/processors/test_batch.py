"""What `batch` says of the journal, which the engine keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline import Database, Durability, JournalSettings
from pipeline.testing import NopHost
from plugins.processors.batch import BatchConfig, BatchProcessor
from tests.plugins.extensions.databases import make_database


def settings(config: dict[str, Any], tmp_path: Path) -> JournalSettings:
    """The settings by that configuration, with a database in `tmp_path`."""
    host = NopHost(make_database(tmp_path / "data" / "metrics.db"))
    return BatchProcessor("batch", BatchConfig.model_validate(config), host).journal_settings()


def test_without_options_the_journal_is_beside_the_database_and_survives_a_power_cut(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "metrics-journal"
    assert settings({}, tmp_path) == JournalSettings(folder, 100, 30.0, 2**30, Durability.POWER_LOSS, reserve=2**20)
    assert list(tmp_path.iterdir()) == [], "saying it makes no folder"


def test_every_option_arrives(tmp_path: Path) -> None:
    config = {"size": 5, "flush_interval": "500ms", "folder": "/other", "max_bytes": "10MiB", "durability": "crash"}
    config |= {"reserve": "2MiB"}
    expected = JournalSettings(Path("/other"), 5, 0.5, 10 * 2**20, Durability.CRASH, reserve=2 * 2**20)
    assert settings(config, tmp_path) == expected


def test_an_interval_of_zero_means_at_once(tmp_path: Path) -> None:
    assert settings({"flush_interval": 0}, tmp_path).flush_interval == 0


@pytest.mark.parametrize(
    "config", [{"size": 0}, {"flush_interval": -1}, {"max_bytes": "1KB"}, {"durability": "maybe"}, {"sise": 1}]
)
def test_options_out_of_bounds_and_unknown_ones_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BatchConfig.model_validate(config)


def test_without_a_database_the_journal_is_in_the_working_directory(tmp_path: Path) -> None:
    assert (BatchProcessor.requires, BatchProcessor.uses) == ((), (Database,))
    assert BatchProcessor("batch", BatchConfig(), NopHost()).journal_settings().folder == Path("metrics-journal")
    assert BatchProcessor("batch", BatchConfig(folder=tmp_path), NopHost()).journal_settings().folder == tmp_path
