"""What cannot be done while the service runs is refused with a line, and leaves everything as it was."""

from __future__ import annotations

import gc
import logging
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import httpx
import pytest

from pipeline import Declaration, Exporter, Signal, hookimpl
from pipeline.graph import Graph
from pipeline.testing.doubles import RecordingConfig, RecordingExporter
from tests.reloading import EVENTS, component, reload
from tests.running import KEY, Running, running, until
from tests.scrapes import total

pytestmark = pytest.mark.anyio

METRIC = {"type": "auth_request", "value": 1.0}


async def last_reload(service: Running) -> tuple[float, float]:
    text = await service.scrape()
    return total(text, "config_last_reload_successful"), total(text, "config_last_reload_success_timestamp_seconds")


REFUSED = [
    ({}, ("receivers.http.port=1",), "receivers.http.port: cannot change from 0 to 1"),
    ({}, ("receivers.http.host=127.0.0.2",), "receivers.http.host: cannot change from 127.0.0.1 to 127.0.0.2"),
    (
        {},
        ("exporters.prometheus.server=uvicorn",),
        "exporters.prometheus.server: cannot change from hypercorn to uvicorn",
    ),
    ({}, ("receivers.http.tls={certificate: /a, key: /b}",), "receivers.http.tls: cannot be turned on or off"),
    ({"SQLITE_DB_PATH": "/nowhere/else.db"}, (), "extensions.database.path: cannot change"),
    ({"METRICS_JOURNAL_DIR": "/nowhere"}, (), "processors.batch.folder: cannot change from"),
    ({}, ("processors.batch.durability=crash",), "processors.batch.durability: cannot change from power_loss to crash"),
    ({"OTEL_SERVICE_NAME": "other"}, (), "service.name: cannot change"),
    ({}, ("connectors.series.max_label_length=7",), "connectors.series.max_label_length: cannot change"),
    ({}, (f"{EVENTS}.processors=[validate, batch]",), "cannot begin or cease to ask for a key"),
    ({}, ("receivers.http.prot=1",), "receivers.http.prot: is not a known"),
    ({"METRICS_RATE_LIMIT": "many"}, (), "extensions.api_keys.rate_limit"),
    (
        {"OTEL_OTLP_ENDPOINT": "https://127.0.0.1:9", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere"},
        (),
        "cannot use /nowhere",
    ),
]


@pytest.mark.parametrize(("variables", "overrides", "line"), REFUSED, ids=[each[-1][:40] for each in REFUSED])
async def test_what_cannot_be_is_one_line_and_changes_nothing(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    variables: Mapping[str, str],
    overrides: tuple[str, ...],
    line: str,
) -> None:
    async with running(tmp_path) as service:
        before, graph = await last_reload(service), service.service.graph
        parts = [(each.id, each.config) for each in graph.components()], len(service.service.listeners)
        caplog.clear()
        assert not await reload(service, "service.log.level=error", *overrides, **variables)
        logged = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
        assert len(logged) == 1, logged
        assert logged[0].startswith("not reloaded: ")
        assert line in logged[0]
        assert service.service.graph is graph
        assert ([(each.id, each.config) for each in graph.components()], len(service.service.listeners)) == parts
        assert await last_reload(service) == (0, before[1])
        assert (await service.push(METRIC)).status_code == 200
        assert await reload(service)
        again = await last_reload(service)
        assert again[0] == 1
        assert again[1] > before[1]


def second(port: int, folder: Path) -> tuple[str, ...]:
    """Another receiver, with a pipeline of its own."""
    return (
        f"receivers.http/second.port={port}",
        "receivers.http/second.host=127.0.0.1",
        "exporters.recording={}",
        f"processors.batch/second={{folder: {folder}, reserve: 1MiB}}",
        "service.pipelines.events/second="
        "{receivers: [http/second], processors: [auth, validate, batch/second], exporters: [recording]}",
    )


async def test_a_receiver_that_cannot_listen_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with running(tmp_path) as service:
            threads = {each.name for each in threading.enumerate()}
            assert not await reload(service, *second(taken.getsockname()[1], tmp_path / "second"))
            assert [each.id for each in service.service.graph.pipelines] == ["events", "metrics"]
            assert not (tmp_path / "second" / "events-second.db").exists()
            assert not (tmp_path / "second" / "reserve.bin").exists()
            assert {each.name for each in threading.enumerate()} <= threads
            assert (await service.push(METRIC)).status_code == 200


async def test_a_pipeline_in_the_folder_of_another_database_is_not_added(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / "theirs"
    other = {"SQLITE_DB_PATH": str(tmp_path / "other.db"), "METRICS_JOURNAL_DIR": str(theirs)}
    async with running(tmp_path, **other) as service:
        assert (await service.push(METRIC)).status_code == 200
    before = (theirs / "reserve.bin").read_bytes()
    async with running(tmp_path) as service:
        assert not await reload(service, *second(0, theirs))
        assert "reserve.bin belongs to the journal" in caplog.text
        assert not (theirs / "events-second.db").exists()
        assert (theirs / "reserve.bin").read_bytes() == before
        assert await reload(service, *second(0, tmp_path / "ours"))
        assert (await service.push(METRIC)).status_code == 200
    assert (tmp_path / "ours" / "reserve.bin").read_bytes()[:100] != before[:100]
    async with running(tmp_path, **other) as service:
        await service.flush()


async def test_a_receiver_with_its_pipeline_is_added_and_removed(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        assert await reload(service, *second(0, tmp_path / "second"))
        (listener,) = service.service.listeners[component(service, "http/second")]
        url = f"http://127.0.0.1:{listener.address[1]}/metrics"
        document = {"service": "test", "metrics": [METRIC]}
        assert (await service.client.post(url, json=document, headers={"X-API-Key": KEY})).status_code == 200
        recording = component(service, "recording")
        await until(lambda: len(recording.batches) == 1)
        assert await reload(service)
        with pytest.raises(httpx.ConnectError):
            await service.client.post(url, json=document)
        assert await reload(service, *second(0, tmp_path / "second"))
        await service.flush()
        assert component(service, "recording").batches == [], "what was taken is not delivered again"


class Slow(RecordingExporter):
    """Never starts."""

    starting = anyio.Event()

    async def start(self) -> None:
        """See above."""
        self.starting.set()
        await anyio.sleep_forever()


class Plugin:
    """Declares `slow`."""

    @hookimpl
    def declare_components(self) -> Sequence[Declaration]:
        return [Declaration("slow", Slow, RecordingConfig, takes=frozenset(Signal))]


async def test_a_stop_does_not_wait_for_a_reload_that_has_not_switched(tmp_path: Path) -> None:
    with anyio.fail_after(15):
        async with running(tmp_path) as service, anyio.create_task_group() as tasks:
            before = service.service.graph

            async def asked() -> None:
                assert not await reload(
                    service, "exporters.slow={}", f"{EVENTS}.exporters=[sqlite, series, slow]", plugins=[Plugin()]
                )

            Slow.starting = anyio.Event()
            tasks.start_soon(asked)
            await Slow.starting.wait()
            service.service.ask_to_stop()
    assert service.service.graph is before


async def test_what_was_replaced_is_not_kept_in_memory(tmp_path: Path) -> None:
    async with running(tmp_path, plugins=[]) as service:
        for number in range(6):
            options = f"{{times: {number}}}"
            assert await reload(
                service, f"exporters.failing={options}", f"{EVENTS}.exporters=[sqlite, series, failing]"
            )
        gc.collect()
        graphs = [each for each in gc.get_objects() if isinstance(each, Graph)]
        assert len([each for each in graphs if component(service, "http") in each.components()]) == 1
        failing = [each for each in gc.get_objects() if isinstance(each, Exporter) and each.id == "failing"]
        assert failing == [component(service, "failing")]
