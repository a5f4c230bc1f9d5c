"""The books: every item that was journaled is accounted for, exporter by exporter, across restarts and `kill -9`."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import ComponentConfig, Declaration, Delivery, EventBatch, Exporter, Permanent, Signal, hookimpl
from pipeline.books import Account
from tests.books import assert_balanced, lines
from tests.faults.changed import plugin
from tests.running import KEY, environment, process, running
from tests.scrapes import total

pytestmark = pytest.mark.anyio

EVENT = {"type": "custom", "value": 1}
OUT = {"exporter": "picky", "pipeline": "events"}


class Picky(Exporter[ComponentConfig]):
    """Refuses events with the value 13, for good."""

    async def export(self, delivery: Delivery) -> None:
        for batch in delivery.batches:
            if isinstance(batch, EventBatch) and any(event.value == 13 for event in batch.events):
                raise Permanent("unlucky")


class PickyPlugin:
    @hookimpl
    def declare_components(self) -> Sequence[Declaration]:
        return [Declaration("picky", Picky, ComponentConfig, takes=frozenset({Signal.EVENTS}))]


def books_of(folder: Path, exporter: str, pipeline: str = "events") -> tuple[int, Account, int, int]:
    """What was journaled, its account, what is pending, and the difference."""
    (line,) = (each for each in lines(folder / "metrics-journal" / f"{pipeline}.db") if each.exporter == exporter)
    return line.journaled, line.account, line.pending, line.difference


def show(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", "books", "--config", "production"]
    environ = {**os.environ, **environment(folder)}
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False)


async def test_what_is_sent_and_what_is_refused_is_accounted_for_to_the_item(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "extends: development\nexporters: {picky: }\nservice: {pipelines: {events: {exporters: [sqlite, series, picky]}}}\n"
    )
    for _ in range(2):  # the second time with what the first has left
        async with running(tmp_path, config=str(tmp_path / "own.yaml"), plugins=[PickyPlugin()]) as service:
            await service.push({"type": "custom", "value": 13}, *[EVENT] * 6)
            await service.push(*[EVENT] * 3)
            await service.flush()
            text = await service.scrape()
    assert books_of(tmp_path, "exporter.picky") == (20, Account(0, sent=18, dead_lettered=2), 0, 0)
    assert books_of(tmp_path, "exporter.sqlite") == (20, Account(0, sent=20), 0, 0)
    assert books_of(tmp_path, "connector.series") == (20, Account(0, sent=20), 0, 0)
    assert total(text, "books_items", **OUT, column="dead_lettered") == 2
    assert total(text, "books_difference_items") == 0


def test_after_kill_9_under_way_the_books_balance_and_the_store_has_what_they_say(tmp_path: Path) -> None:
    for round in range(4):
        with process(tmp_path) as (service, base):
            headers = {"X-API-Key": KEY}
            with httpx.Client(base_url=base, headers=headers) as client:
                for _ in range(20):
                    document = {"service": "test", "metrics": [EVENT] * 5}
                    assert client.post("/metrics", json=document).status_code == 200
                if round == 3:
                    assert client.post("/flush").json()["status"] == "success"
            service.kill()
    with closing(sqlite3.connect(tmp_path / "metrics.db")) as connection:
        assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (400,)
    shown = show(tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    (sqlite,) = (line.split() for line in shown.stdout.splitlines() if "exporter.sqlite" in line)
    journaled, sent, *others, pending, difference = map(int, sqlite[2:])
    assert (journaled, sent + pending, others, difference) == (400, 400, [0, 0, 0], 0)


def test_what_nobody_accounts_for_is_shown_and_is_exit_code_1(tmp_path: Path) -> None:
    with process(tmp_path) as (service, base):
        httpx.post(f"{base}/metrics", headers={"X-API-Key": KEY}, json={"service": "test", "metrics": [EVENT]})
        assert httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}).json()["status"] == "success"
        service.terminate()
        service.wait(timeout=20)
    with closing(sqlite3.connect(tmp_path / "metrics-journal" / "events.db")) as connection, connection:
        connection.execute("UPDATE cursors SET sent = sent - 1 WHERE exporter = 'exporter.sqlite'")
    shown = show(tmp_path)
    assert shown.returncode == 1
    assert "not everything is accounted for" in shown.stderr
    assert re.search(r"exporter\.sqlite +1 +0 +0 +0 +0 +0 +1$", shown.stdout, re.MULTILINE)


async def test_an_exporter_that_is_added_later_has_an_account_that_begins_there(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.push(EVENT, EVENT)
        await service.flush()
    async with running(tmp_path, "exporters.debug.enabled=true") as service:
        await service.push(EVENT)
        await service.flush()
    assert books_of(tmp_path, "exporter.debug") == (1, Account(2, sent=1), 0, 0)


def test_a_journal_of_a_version_without_books_gets_them_and_loses_nothing(tmp_path: Path) -> None:
    def older(connection: sqlite3.Connection) -> Any:
        connection.executescript("""
            DROP TRIGGER journal_counts; DROP TABLE journaled;
            CREATE TABLE before AS SELECT exporter, position FROM cursors; DROP TABLE cursors;
            CREATE TABLE cursors (exporter TEXT PRIMARY KEY, position INTEGER NOT NULL) STRICT;
            INSERT INTO cursors SELECT * FROM before; DROP TABLE before;
        """)

    with process(tmp_path) as (_, base):
        push = {"service": "test", "metrics": [EVENT] * 3}
        assert httpx.post(f"{base}/metrics", headers={"X-API-Key": KEY}, json=push).status_code == 200
    with closing(sqlite3.connect(tmp_path / "metrics-journal" / "events.db")) as connection:
        older(connection)
    with process(tmp_path) as (service, base):
        assert httpx.post(f"{base}/metrics", headers={"X-API-Key": KEY}, json=push).status_code == 200
        assert httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}).json()["status"] == "success"
        service.terminate()
        service.wait(timeout=20)
    journaled, account, pending, difference = books_of(tmp_path, "exporter.sqlite")
    assert (journaled, account.sent, pending, difference) == (6, 6, 0, 0)


FORGETFUL = """
from pipeline import hookimpl
from pipeline.counts import Counts

settle = Counts.settle


def settle_and_forget(self, items, *rest):
    settle(self, items, *rest)
    self.journaled = self.received = 0


Counts.settle = settle_and_forget


@hookimpl
def declare_components():
    return []
"""
"""A service that does not count what it receives."""


def push_and_flush(base: str) -> None:
    push = {"service": "test", "metrics": [EVENT]}
    assert httpx.post(f"{base}/metrics", headers={"X-API-Key": KEY}, json=push).status_code == 200
    assert httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}).json()["status"] == "success"


def spoiled(folder: Path, **variables: str) -> None:
    """Run it, and then change its books by one item."""
    with process(folder, **variables) as (service, base):
        push_and_flush(base)
        service.terminate()
        service.wait(timeout=20)
        journal = Path(variables["SQLITE_DB_PATH"]).parent / "metrics-journal" / "events.db"
        with closing(sqlite3.connect(journal)) as connection, connection:
            connection.execute("UPDATE cursors SET sent = sent - 1 WHERE exporter = 'exporter.sqlite'")


def test_the_last_assertion_looks_wherever_the_journal_is(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"events\.db"):
        spoiled(tmp_path, SQLITE_DB_PATH=str(tmp_path / "elsewhere" / "metrics.db"))


def test_the_last_assertion_looks_at_what_came_in(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="books_intake_difference_items"),
        process(tmp_path, *plugin(tmp_path, FORGETFUL)) as (_, base),
    ):
        push_and_flush(base)


def test_the_last_assertion_passes_over_damage_and_nothing_else(tmp_path: Path) -> None:
    journal = tmp_path / "events.db"
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("CREATE TABLE something (other)")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        assert_balanced([journal])
    journal.write_bytes(b"no database" * 1000)
    assert assert_balanced([journal]) == 0
