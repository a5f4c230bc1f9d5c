"""Counters of a real service and its saved state: neither a lost nor a foreign file resets them silently."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import StartError
from pipeline.graph import Graph
from pipeline.saved_state import Source
from plugins.connectors.series.connector import SeriesConnector
from tests.running import ACCEPTED, Running, running
from tests.scrapes import samples

pytestmark = pytest.mark.anyio

JOURNAL = "metrics-journal"


async def count(service: Running, pushes: int) -> float:
    """The counter after so many pushes more."""
    for _ in range(pushes):
        (await service.push({"type": "custom", "value": 1})).raise_for_status()
    await service.flush()
    return sum(samples(await service.scrape(), prefix="mcp_custom_events_total").values())


async def counted(folder: Path, pushes: int, *, accept: bool = False) -> float:
    """The counter of a service that gets so many pushes, and is then stopped."""
    async with running(folder, *([ACCEPTED] if accept else [])) as service:
        return await count(service, pushes)


def leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    return group


def databases(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.suffix == ".db"}


async def refused(folder: Path) -> str:
    """Why a start is refused. It creates no file."""
    before = databases(folder)
    with pytest.raises(BaseExceptionGroup) as group:
        await counted(folder, 0)
    error = leaf(group.value)
    assert isinstance(error, StartError), error
    assert error.exit_code == 78
    assert databases(folder) == before
    return str(error)


async def test_a_state_file_that_is_missing_is_refused_and_works_once_it_is_back(tmp_path: Path) -> None:
    assert await counted(tmp_path, 3) == 3
    state = tmp_path / JOURNAL / "state.db"
    state.rename(tmp_path / "elsewhere")
    said = await refused(tmp_path)
    assert f"{state} is missing, but the journal beside it says" in said
    assert "--accept-journal-reset" in said
    (tmp_path / "elsewhere").rename(state)
    assert await counted(tmp_path, 1) == 4


async def test_a_state_file_that_is_given_up_starts_from_what_the_journal_holds(tmp_path: Path) -> None:
    assert await counted(tmp_path, 3) == 3
    (tmp_path / JOURNAL / "state.db").unlink()
    begun = await counted(tmp_path, 0, accept=True)
    assert begun <= 3
    assert await counted(tmp_path, 2) == begun + 2


async def test_the_state_file_of_another_service_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, pushes in ((one, 3), (other, 5)):
        folder.mkdir()
        assert await counted(folder, pushes) == pushes
    own = (one / JOURNAL / "state.db").read_bytes()
    (one / JOURNAL / "state.db").write_bytes((other / JOURNAL / "state.db").read_bytes())
    assert "state.db" in await refused(one)
    (one / JOURNAL / "state.db").write_bytes(own)
    assert await counted(one, 0) == 3


async def test_a_damaged_state_file_costs_no_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert await counted(tmp_path, 3) == 3
    state = tmp_path / JOURNAL / "state.db"
    state.write_bytes(b"\xff" * state.stat().st_size)
    begun = await counted(tmp_path, 0)
    assert begun <= 3
    assert "state.db is damaged" in caplog.text
    assert await counted(tmp_path, 2) == begun + 2


def as_an_earlier_version(folder: Path) -> None:
    """Move the state into the database, as an earlier version kept it, and forget that the journal knows of the file."""
    state = folder / JOURNAL / "state.db"
    with closing(sqlite3.connect(folder / "metrics.db", isolation_level=None)) as database:
        database.execute("ATTACH ? AS state", (str(state),))
        database.execute("INSERT INTO component_records SELECT owner, name, record FROM state.records")
        database.execute(
            "INSERT INTO exporter_cursors (exporter, pipeline, position) SELECT owner, pipeline, position FROM state.positions"
        )
    with closing(sqlite3.connect(folder / JOURNAL / "events.db", isolation_level=None)) as journal:
        journal.execute("DELETE FROM stores WHERE holder = 'connector.series'")
    state.unlink()


async def test_counters_go_on_after_an_upgrade_and_an_old_database_is_never_read_again(tmp_path: Path) -> None:
    assert await counted(tmp_path, 3) == 3
    as_an_earlier_version(tmp_path)
    backup = (tmp_path / "metrics.db").read_bytes()
    assert await counted(tmp_path, 2) == 5
    (tmp_path / "metrics.db").write_bytes(backup)
    assert await counted(tmp_path, 0) == 5
    assert await counted(tmp_path, 1) == 6


async def test_an_upgrade_that_is_killed_before_its_first_save_is_done_again(tmp_path: Path) -> None:
    assert await counted(tmp_path, 3) == 3
    as_an_earlier_version(tmp_path)
    (tmp_path / JOURNAL / "state.db").touch()  # as left by a process that was killed right after it created it
    assert await counted(tmp_path, 1) == 4


async def test_a_service_that_knows_no_identity_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(self: SeriesConnector) -> None:
        return None

    def without(self: Graph, owner: str) -> list[Source]:
        return [
            Source(each.id, each.settings.folder, each.journal.id) for each in self.pipelines if each.id == "events"
        ]

    assert await counted(tmp_path, 3) == 3
    (tmp_path / JOURNAL / "state.db").unlink()
    monkeypatch.setattr(SeriesConnector, "store", unknown)
    monkeypatch.setattr(Graph, "sources", without)
    assert await counted(tmp_path, 0) < 3, "the counters were reset silently"
