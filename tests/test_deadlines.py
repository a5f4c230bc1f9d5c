"""A call of a plugin that hangs is named, cancelled at its deadline, and delays no other: each kind of call, in a service."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import anyio
import pytest

from pipeline import StartError
from pipeline.deadlines import Deadlines
from tests.beside import KINDS, World, beside
from tests.running import Running, until
from tests.scrapes import total

METRIC = {"type": "auth_request", "value": 1.0}
SHORT = Deadlines(
    start=1,
    call=1,
    flush=1,
    reload=1,
    reported=0.4,
    export_reported=0.4,
    route_reported=0.4,
    cancelled=0.4,
    export_cancelled=0.4,
)
PATIENCE = 15.0
"""Seconds in which anything must be over on busy cores; what hangs would last for ever."""

pytestmark = pytest.mark.anyio


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_on() -> None:
    """Swallow every cancellation until the test is over."""
    while not over.is_set():
        try:
            await over.wait()
        except asyncio.CancelledError:
            continue


async def hang_in_a_thread() -> None:
    await asyncio.to_thread(let_go.wait)


over: asyncio.Event
let_go: threading.Event


@pytest.fixture(autouse=True)
async def _ends() -> None:
    global over, let_go
    over, let_go = asyncio.Event(), threading.Event()


def end() -> None:
    over.set()
    let_go.set()


HANGS: Mapping[str, Callable[[], Awaitable[None]]] = {
    "awaits": hang,
    "swallows its cancellation": hang_on,
    "waits for a thread": hang_in_a_thread,
}
EACH_HANG = pytest.mark.parametrize("how", HANGS)


def lines(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """The lines of the log that hold all these words."""
    messages = (record.getMessage() for record in caplog.records)
    return [message for message in messages if all(word in message for word in words)]


async def says(service: Running, component: str, state: str) -> None:
    """Wait until the health page says that of a component."""

    async def of_page() -> str:
        answer = await service.client.get("/health/ready")
        return str(answer.json()["components"][component])

    with anyio.fail_after(PATIENCE):
        while state not in await of_page():  # noqa: ASYNC110 - a page sends no event
            await anyio.sleep(0.02)


DECODING = ("processors.decoding={}", "service.pipelines.events.processors=[auth, rate_limit, decoding, batch]")


@EACH_HANG
async def test_a_document_whose_decoder_hangs_is_refused(tmp_path: Path, how: str) -> None:
    world = World()
    async with beside(tmp_path, world, *DECODING, "processors.beside.enabled=false", deadlines=SHORT) as service:
        world.does["decode"] = HANGS[how]
        with anyio.fail_after(PATIENCE):
            answer = await service.push(METRIC)
        assert (answer.status_code, answer.json()["detail"]) == (
            503,
            "processor decoding did not return from decode within 1 s",
        )
        del world.does["decode"]
        end()
        assert (await service.push(METRIC)).status_code == 200


@EACH_HANG
@pytest.mark.parametrize("method", ["admit", "process"])
async def test_a_push_is_refused_at_the_deadline_and_the_next_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, how: str
) -> None:
    world = World()
    async with beside(tmp_path, world, deadlines=SHORT) as service:
        world.does[method] = lambda *given: HANGS[how]()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(says, service, "processor/beside", f"{method} has not returned for ")
                answer = await service.push(METRIC)
        assert answer.status_code == 503
        assert answer.json()["detail"] == f"processor beside did not return from {method} within 1 s"
        assert int(answer.headers["Retry-After"]) >= 1
        del world.does[method]
        assert (await service.push(METRIC)).status_code == 200
        end()
        await until(lambda: service.service.calls.state_of("processor/beside") is None)
        await service.flush()
        assert service.rows() == [(1,)]
        refused = {"receiver": "http", "pipeline": "events", "reason": "timed_out"}
        assert total(await service.scrape(), "otelcol_receiver_refused_requests_total", **refused) == 1
    assert len(lines(caplog, "processor beside", method, "has not returned")) == 1
    assert len(lines(caplog, "processor beside", method, "within 1 s")) >= 1


async def test_many_pushes_that_hang_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    async with beside(tmp_path, world, deadlines=SHORT) as service:
        world.does["process"] = lambda batch: hang()
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(service.push, METRIC)
        del world.does["process"]
        assert (await service.push(METRIC)).status_code == 200
    assert len(lines(caplog, "processor beside", "has not returned")) == 1


@EACH_HANG
async def test_an_export_that_hangs_is_named_delays_nobody_and_ends_with_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    world = World(export=HANGS[how])
    async with beside(tmp_path, world, deadlines=SHORT) as service:
        assert (await service.push(METRIC)).status_code == 200
        await says(service, "exporter/beside", "export has not returned for ")
        began = time.monotonic()
        answer = await service.client.post("/flush", timeout=PATIENCE)
        assert time.monotonic() - began < PATIENCE
        assert (answer.status_code, answer.json()["detail"]) == (503, "not flushed within 1 s: exporter beside")
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await service.push(METRIC)).status_code == 200
        await until(lambda: service.rows() == [(2,)])
        assert "build_info" in await service.scrape()
        stopping = time.monotonic()
    assert time.monotonic() - stopping < PATIENCE
    end()
    assert len(lines(caplog, "exporter beside", "export has not returned")) == 1


async def test_an_export_that_goes_on_is_clean_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service")
    world = World(export=hang_on)
    async with beside(tmp_path, world, deadlines=SHORT) as service:
        assert (await service.push(METRIC)).status_code == 200
        await says(service, "exporter/beside", "export has not returned for ")
        end()
        await until(lambda: service.service.calls.state_of("exporter/beside") is None)
        await service.flush()
    assert len(lines(caplog, "exporter beside", "export ended after")) == 1


@EACH_HANG
async def test_a_flush_of_an_exporter_that_hangs_is_bounded(tmp_path: Path, how: str) -> None:
    world = World(flush=HANGS[how])
    async with beside(tmp_path, world, deadlines=SHORT) as service:
        assert (await service.push(METRIC)).status_code == 200
        answer = await service.client.post("/flush", timeout=PATIENCE)
        assert (answer.status_code, answer.json()["detail"]) == (503, "not flushed within 1 s: exporter beside")
        del world.does["flush"]
        end()
        await service.flush()
        assert service.rows() == [(1,)]


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *((kind, "swallows its cancellation") for kind in sorted(KINDS)),
        *(("extension", how) for how in list(HANGS)[::2]),
    ],
)
async def test_a_start_that_hangs_ends_the_start(tmp_path: Path, kind: str, how: str) -> None:
    began = time.monotonic()
    with pytest.raises((StartError, ExceptionGroup)) as raised:
        async with beside(tmp_path, World(**{f"{kind}_start": HANGS[how]}), deadlines=SHORT):
            raise AssertionError("started")
    assert time.monotonic() - began < PATIENCE
    end()
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert str(error) == f"{kind} beside cannot start: it did not return within 1 s"
    assert isinstance(error, StartError)
    assert error.exit_code == 70


@EACH_HANG
async def test_a_reload_that_hangs_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    world = World(reload=lambda: None)
    async with beside(tmp_path, world, deadlines=SHORT) as service:
        world.does["reload"] = HANGS[how]
        with anyio.fail_after(PATIENCE):
            assert not await service.service.reload(lambda: service.service.configuration)
        assert (await service.push(METRIC)).status_code == 200
        end()
        world.does["reload"] = lambda: None
        assert await service.service.reload(lambda: service.service.configuration)
    assert len(lines(caplog, "not reloaded: it did not finish within 1 s", "extension beside (reload)")) == 1


async def test_a_file_that_does_not_answer_refuses_a_reload(tmp_path: Path) -> None:
    async with beside(tmp_path, World(), deadlines=SHORT) as service:

        def load() -> object:
            let_go.wait()
            raise OSError("over")

        with anyio.fail_after(PATIENCE):
            assert not await service.service.reload(load)  # type: ignore[arg-type]
        end()
        assert (await service.push(METRIC)).status_code == 200


@EACH_HANG
async def test_a_task_that_does_not_end_is_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with beside(tmp_path, World(extension_task=HANGS[how]), deadlines=SHORT) as service:
        assert (await service.push(METRIC)).status_code == 200
        stopping = time.monotonic()
    assert time.monotonic() - stopping < PATIENCE
    end()
    left = lines(caplog, "a task of extension beside does not end: it is left behind")
    assert len(left) == (1 if how == "swallows its cancellation" else 0)


async def test_a_route_that_hangs_is_named(tmp_path: Path) -> None:
    async with beside(tmp_path, World(answer=hang_on), deadlines=SHORT) as service:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.client.get, "/beside")
            await says(service, "extension/beside", "GET /beside has not returned for ")
            tasks.cancel_scope.cancel()
        end()
        await until(lambda: service.service.calls.state_of("extension/beside") is None)


async def test_a_stop_during_a_start_that_hangs_ends_it(tmp_path: Path) -> None:
    """`ask_to_stop` is what SIGTERM calls."""
    from pipeline.config.load import load_configuration
    from pipeline.registry import load_registry
    from pipeline.service import Service
    from tests.beside import CONFIGURATION, Plugin
    from tests.running import environment

    (tmp_path / "beside.yaml").write_text(CONFIGURATION)
    world = World(extension_start=hang_on)
    configuration = load_configuration(
        [str(tmp_path / "beside.yaml")],
        ["receivers.http.port=0"],
        environment(tmp_path),
        load_registry(extra=[Plugin(world)]),
    )
    service = Service(configuration, deadlines=Deadlines(cancelled=0.4))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.run)
            await anyio.sleep(0.5)
            service.ask_to_stop()
    end()
    assert world.stopped == KINDS
