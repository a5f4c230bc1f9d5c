"""`metrics-service dead-letters` beside a service that runs, and what the service does then."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from pipeline import ComponentConfig, Declaration, Delivery, EventBatch, Exporter, Permanent, Signal, hookimpl
from tests.pipeline.test_journal import batch_of
from tests.running import KEY, environment, process, rows, running, until
from tests.test_cli import Command, command  # noqa: F401 - a fixture
from tests.test_cli_dead_letters import letters, put


class Picky(Exporter[ComponentConfig]):
    """Refuses the value 13, until it is `mended`."""

    mended = False
    taken: list[float]

    async def export(self, delivery: Delivery) -> None:
        values = [event.value for batch in delivery.batches if isinstance(batch, EventBatch) for event in batch.events]
        if 13 in values and not self.mended:
            raise Permanent("13 is unlucky")
        self.taken = [*getattr(self, "taken", ()), *values]


class PickyPlugin:
    """Declares `picky`."""

    @hookimpl
    def declare_components(self) -> Sequence[Declaration]:
        """See the hook."""
        return [Declaration("picky", Picky, ComponentConfig, takes=frozenset({Signal.EVENTS}))]


@pytest.mark.anyio
async def test_beside_the_service_a_letter_is_shown_and_handed_over_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.replay.LOOK_EVERY", 0.05)
    monkeypatch.setenv("SQLITE_DB_PATH", str(tmp_path / "metrics.db"))  # which names the journal's folder
    own = tmp_path / "own.yaml"
    own.write_text(
        "extends: development\nexporters: {picky: {}}\n"
        "service: {pipelines: {events: {exporters: [sqlite, series, picky]}}}\n"
    )
    async with running(tmp_path, config=str(own), plugins=[PickyPlugin()]) as service:
        picky = next(each for each in service.service.graph.components() if isinstance(each, Picky))
        metrics = [{"type": "custom", "value": value} for value in (12, 13, 14)]
        (await service.push(*metrics)).raise_for_status()
        await service.flush()

        async def typed(*words: str) -> Any:
            """In a thread, as the other process that it is would not hold the loop."""
            return await anyio.to_thread.run_sync(command, "dead-letters", *words)

        # The command needs not know the exporter, only where the journal is.
        (letter,) = json.loads((await typed("list", "--json")).out)
        assert (letter["exporter"], letter["items"], letter["reason"]) == ("picky", 1, "13 is unlucky")
        shown = json.loads((await typed("show", letter["id"])).out)
        assert [event["value"] for event in shown["batch"]["events"]] == [13]
        assert picky.taken == [12, 14]
        picky.mended = True
        assert (await typed("replay", letter["id"])).code == 0
        await until(lambda: not letters(tmp_path / "metrics-journal" / "events.db"))
        assert picky.taken == [12, 14, 13]
        assert (await typed("list")).out == "There are no dead letters.\n"
        assert service.rows("SELECT count(*) FROM metrics") == [(3,)], "it is nobody else's"
        replayed = r'^exporter_replayed_items_total\{exporter="picky",pipeline="events"\} 1(\.0)?$'
        assert re.search(replayed, await service.scrape(), re.MULTILINE)


def test_beside_another_process_and_after_it_was_killed_and_before_the_next(tmp_path: Path) -> None:
    environ = {**os.environ, **environment(tmp_path)}

    def typed(*words: str) -> str:
        called = [sys.executable, "-m", "pipeline.cli", "dead-letters", *words, "--config", "production"]
        ended = subprocess.run(called, env=environ, capture_output=True, text=True, check=True, timeout=60)
        assert ended.stderr == ""
        return ended.stdout

    def push(base: str) -> None:
        document = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
        httpx.post(f"{base}/metrics", json=document, headers={"X-API-Key": KEY}).raise_for_status()

    with process(tmp_path, FLUSH_INTERVAL_SECONDS="0.1") as (_, base):
        push(base)
        put(tmp_path / "metrics-journal" / "events.db", *((batch_of(value), "no") for value in (2, 3, 4)))
        assert len(json.loads(typed("list", "--json"))) == 3
        assert typed("drop", "events:1") == "1 dead letter deleted.\n"
        push(base)
    assert len(json.loads(typed("list", "--json"))) == 2
    assert typed("replay", "events:2").startswith("1 dead letter marked")
    with process(tmp_path, FLUSH_INTERVAL_SECONDS="0.1"):
        wait_for_rows(tmp_path / "metrics.db", [(1.0,), (1.0,), (3.0,)])
    assert [each.id for each in letters(tmp_path / "metrics-journal" / "events.db")] == [3]


def wait_for_rows(database: Path, wanted: list[tuple[float]]) -> None:
    async def wait() -> None:
        await until(lambda: rows(database, "SELECT value FROM metrics ORDER BY value") == wanted)

    anyio.run(wait)
