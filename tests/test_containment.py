"""What one component gets wrong is named, and stays with it: the service goes on, or says in one line why it cannot."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import Batch, Instrument, InstrumentKind, Malformed, Route, StartError
from pipeline.config.load import load_configuration
from pipeline.doctor import examine
from pipeline.registry import load_registry
from pipeline.watchdog import BLOCKED_SECONDS
from tests.beside import CONFIGURATION, KINDS, Plugin, World, beside
from tests.running import Running, command, environment, in_use, process, until, without_blocks
from tests.scrapes import total

METRIC = {"type": "auth_request", "value": 1.0}
SERVERS = pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        raise error

    return call


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


async def components(service: Running) -> dict[str, str]:
    """What `/health/ready` says of each component; the service is ready."""
    answer = await service.client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    states: dict[str, str] = answer.json()["components"]
    return states


def is_error_of_ours(answer: httpx.Response) -> None:
    """The form of docs/api.md."""
    expected = {"detail": "Internal Server Error", "status_code": 500, "request_id": answer.headers["X-Request-ID"]}
    assert (answer.status_code, answer.json()) == (500, expected)


FAULTS: Mapping[str, tuple[str, Callable[..., Any], str]] = {
    "admit": ("admit", raising(ValueError("so\nbad")), " failed: ValueError: so bad"),
    "process": ("process", raising(KeyError("gone")), " failed: KeyError: 'gone'"),
    "process ends the process": ("process", raising(SystemExit(3)), " failed: SystemExit: 3"),
    "process raises KeyboardInterrupt": ("process", raising(KeyboardInterrupt()), " failed: KeyboardInterrupt"),
    "process refuses with a lone surrogate": (
        "process",
        raising(Malformed("\ud800")),
        " failed: UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
    ),
    "process forgets the batch": (
        "process",
        lambda batch: None,
        ": invalid batch: got NoneType (must be EventBatch)",
    ),
    "process cancels itself": ("process", raising(asyncio.CancelledError()), " failed: CancelledError"),
}


@pytest.mark.anyio
@SERVERS
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_processor_that_fails_is_an_error_of_ours_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, server: str, fault: str
) -> None:
    method, act, said = FAULTS[fault]
    world = World()
    async with beside(tmp_path, world, f"receivers.http.server={server}") as service:
        world.does[method] = act
        is_error_of_ours(await service.push(METRIC))
        (record,) = errors(caplog)
        assert record.getMessage() == f"cannot process a request: processor beside{said}"
        del world.does[method]
        assert (await service.push(METRIC)).status_code == 200
        await service.flush()
        assert service.rows() == [(1,)]
        text = await service.scrape()
        refused = {"receiver": "http", "pipeline": "events", "reason": "internal"}
        assert total(text, "otelcol_receiver_refused_requests_total", **refused) == 1
        items = 0 if method == "admit" else 1
        assert total(text, "otelcol_receiver_refused_items_total", **refused) == items
        assert set(without_blocks(await components(service)).values()) == {"ok"}


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


def recurse(*given: Any) -> Any:
    return recurse(*given)


RAISED: Mapping[str, Callable[..., Any]] = {
    "exit": raising(SystemExit(3)),
    "interrupt": raising(KeyboardInterrupt()),
    "generator exit": raising(GeneratorExit()),
    "cancelled": raising(asyncio.CancelledError()),
    "group": raising(BaseExceptionGroup("several", [SystemExit(1), GeneratorExit()])),
    "unspeakable": raising(Unspeakable()),
    "huge": raising(ValueError("x" * 3_000_000)),
    "recursion": recurse,
    "memory": raising(MemoryError()),
}


@pytest.mark.anyio
@pytest.mark.parametrize("what", RAISED)
async def test_whatever_a_component_raises_costs_that_one_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    act, go = RAISED[what], asyncio.Event()

    async def later() -> None:
        await go.wait()
        act()

    world = World(extension_task=later, app=act, reload=lambda: None)
    pushed = 0
    async with beside(tmp_path, world) as service:
        (listener,) = (
            each for one, (each,) in service.service.listeners.items() if one.kind == "receiver" and one.id == "beside"
        )
        own = f"http://127.0.0.1:{listener.address[1]}/"
        for method in ("admit", "process"):
            world.does[method] = act
            is_error_of_ours(await service.push(METRIC))
            del world.does[method]
        world.does["answer"] = act
        is_error_of_ours(await service.client.get("/beside"))
        del world.does["answer"]
        assert (await service.client.get(own)).status_code == 500
        del world.does["app"]
        assert (await service.client.get(own)).status_code == 204
        for method in ("instruments", "read"):
            world.does[method] = act
            assert "beside_value" not in await service.scrape() or method == "instruments"
            del world.does[method]
        for method in ("saved", "export"):
            world.does[method] = act
            assert (await service.push(METRIC)).status_code == 200
            pushed += 1
            await service.client.post("/flush")
        await until(lambda: service.service.health().components["exporter/beside"].startswith("cannot deliver since "))
        assert len(service.service.health().components["exporter/beside"]) < 1200
        del world.does["saved"], world.does["export"]
        await until(lambda: "deliver" not in service.service.health().components["exporter/beside"])
        world.does["flush"] = act
        answer = await service.client.post("/flush")
        assert (answer.status_code, answer.json()["status"]) == (200, "partial")
        assert "exporter beside" in answer.json()["message"]
        del world.does["flush"]
        go.set()
        await until(lambda: service.service.health().components["extension/beside"].startswith("failed with "))
        for method in ("reload", "apply"):
            world.does[method] = act
            assert await service.service.reload(lambda: service.service.configuration) is (method == "apply")
            del world.does[method]
            world.does["reload"] = lambda: None
        assert (await service.push(METRIC)).status_code == 200
        pushed += 1
        await service.flush()
        assert service.rows() == [(pushed,)]
        for kind in KINDS:
            world.does[f"{kind}_stop"] = act
    assert all(len(record.getMessage()) < 5000 for record in caplog.records)


@pytest.mark.parametrize("what", RAISED)
def test_an_error_in_findings_is_a_finding(tmp_path: Path, what: str) -> None:
    (tmp_path / "beside.yaml").write_text(CONFIGURATION)
    registry = load_registry(extra=[Plugin(World(findings=RAISED[what]))])
    configuration = load_configuration([str(tmp_path / "beside.yaml")], [], environment(tmp_path), registry)
    (found,) = (each for each in examine(configuration) if each.where == "extensions.beside")
    assert found.what.startswith("cannot be looked at: ")


RUBBISH: Mapping[str, tuple[str, Any, str]] = {
    "instruments": (
        "instruments",
        [1],
        "left out the instruments of extension beside: instruments returned 1 (must return a",
    ),
    "an instrument's name": (
        "instruments",
        [Instrument(7, InstrumentKind.GAUGE, "", (), list)],  # type: ignore[arg-type]
        "left out the instruments of extension beside: 7: name is 7 (must be a str)",
    ),
    "an instrument's kind": (
        "instruments",
        [Instrument("x", "gauge", "", (), list)],  # type: ignore[arg-type]
        "left out the instruments of extension beside: 'x': kind is 'gauge' (must be a InstrumentKind)",
    ),
    "an instrument's labels": (
        "instruments",
        [Instrument("x", InstrumentKind.GAUGE, "", (1,), list)],  # type: ignore[arg-type]
        "left out the instruments of extension beside: 'x': labels is (1,) (must be a tuple of str)",
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("what", RUBBISH)
async def test_invalid_instruments_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    method, given, said = RUBBISH[what]
    async with beside(tmp_path, World(**{method: lambda: given})) as service:
        assert total(await service.scrape(), "build_info") == 1
        assert (await service.push(METRIC)).status_code == 200
    assert [record.getMessage()[: len(said)] for record in errors(caplog)] == [said]


@pytest.mark.anyio
async def test_a_component_that_blocks_the_loop_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def block(batch: Batch) -> Batch:
        time.sleep(3 * BLOCKED_SECONDS)
        return batch

    async with beside(tmp_path, World(process=block)) as service:
        assert (await service.push(METRIC)).status_code == 200
        await until(lambda: any("blocked the event loop" in record.getMessage() for record in caplog.records))
        states = await components(service)
        said = re.match(
            r"blocked the event loop for ([\d.]+) s, \d+ s ago at tests/beside.py:", states["processor/beside"]
        )
        assert said
        assert float(said[1]) > 2 * BLOCKED_SECONDS
        assert set(without_blocks(states).values()) == {"ok"}
        text = await service.scrape()
        assert total(text, "component_blocked_loop_total", component="processor/beside") == 1
        assert total(text, "component_blocked_loop_seconds_total", component="processor/beside") > 2 * BLOCKED_SECONDS


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["read", "instruments"])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no")], ids=repr)
async def test_instruments_that_cannot_be_read_spoil_no_scrape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, error: BaseException
) -> None:
    async with beside(tmp_path, World(**{method: raising(error)})) as service:
        for _ in range(2):
            text = await service.scrape()
            assert "beside_value" not in text
            assert total(text, "build_info") == 1
    (record,) = errors(caplog)
    said = {"read": "cannot read beside_value", "instruments": "left out the instruments of extension beside"}
    assert record.getMessage() == said[method]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no")], ids=repr)
async def test_a_route_that_fails_is_an_error_of_ours_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    world = World(answer=raising(error))
    async with beside(tmp_path, world) as service:
        is_error_of_ours(await service.client.get("/beside"))
        (record,) = errors(caplog)
        failed = f"extension beside failed: {type(error).__name__}: no"
        assert record.getMessage() == f"cannot serve /beside: {failed}"
        del world.does["answer"]
        assert (await service.client.get("/beside")).json() == {"fine": True}


async def cancelled() -> None:
    raise asyncio.CancelledError


async def grouped() -> None:
    raise ExceptionGroup("several", [StartError("no such thing", 73)])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("act", "said"),
    [(raising(SystemExit("no licence")), "SystemExit"), (cancelled, "CancelledError")],
    ids=["exit", "cancelled"],
)
@pytest.mark.parametrize("kind", ["extension", "receiver"])
async def test_a_task_that_fails_is_the_state_of_its_component(
    tmp_path: Path, act: Callable[..., Any], said: str, kind: str
) -> None:
    async with beside(tmp_path, World(**{f"{kind}_task": act})) as service:
        await until(lambda: service.service.health().components[f"{kind}/beside"] == f"failed with {said}")
        answer = await service.client.get("/health/ready")
        assert answer.status_code == (503 if kind == "receiver" else 200)
        assert (await service.push(METRIC)).status_code == 200


CUSTOM = (
    "processors.decoding={}",
    "processors.keeping={}",
    "service.pipelines.events.processors=[auth, rate_limit, decoding, beside, keeping]",
)


@pytest.mark.anyio
@pytest.mark.parametrize("what", RAISED)
async def test_whatever_a_decoder_raises_costs_that_one_push(tmp_path: Path, what: str) -> None:
    world = World()
    async with beside(tmp_path, world, *CUSTOM) as service:
        world.does["decode"] = RAISED[what]
        is_error_of_ours(await service.push(METRIC))
        del world.does["decode"]
        assert (await service.push(METRIC)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [None, {}, "journal"])
async def test_invalid_journal_settings_name_the_component(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(StartError) as raised:
        async with beside(tmp_path, World(journal_settings=lambda: settings), *CUSTOM):
            raise AssertionError("started")
    said = f"TypeError: journal_settings returned {settings!r} (must return JournalSettings), at "
    assert str(raised.value).startswith(f"processor keeping cannot be made: {said}")
    assert raised.value.exit_code == 70


STARTS: Mapping[str, tuple[Callable[..., Any], int, str]] = {
    "receiver_init": (raising(ValueError("so\nbad")), 70, "receiver beside cannot be made: ValueError: so bad, at "),
    "processor_init": (raising(SystemExit("no")), 70, "processor beside cannot be made: SystemExit: no, at "),
    "exporter_init": (raising(LookupError("no")), 70, "exporter beside cannot be made: LookupError: no, at "),
    "extension_init": (raising(TypeError("no")), 70, "extension beside cannot be made: TypeError: no, at "),
    "receiver_start": (raising(OSError(5, "no")), 70, "receiver beside cannot start: OSError: [Errno 5] no, at "),
    "processor_start": (raising(SystemExit("no")), 70, "processor beside cannot start: SystemExit: no, at "),
    "exporter_start": (cancelled, 70, "exporter beside cannot start: CancelledError, at "),
    "extension_start": (grouped, 73, "no such thing"),
    "saved": (raising(ValueError("no")), 70, "exporter beside failed: ValueError: no"),
    "saved, which is text": (
        lambda: "7",
        70,
        "exporter beside failed: TypeError: saved returned '7' (must return a position or None)",
    ),
    "routes, which are numbers": (
        lambda: [1],
        70,
        "extension beside cannot offer its routes: TypeError: routes returned 1 (must return a sequence of Route), at ",
    ),
    "routes, one without access": (
        lambda: [Route("GET", "/x", None, len, "")],  # type: ignore[arg-type]
        70,
        "extension beside cannot offer its routes: TypeError: routes returned one with access=None (must be a Access), at ",
    ),
    "routes": (raising(ValueError("no")), 70, "extension beside cannot offer its routes: ValueError: no, at "),
}


@pytest.mark.anyio
@pytest.mark.parametrize("what", STARTS)
async def test_a_component_that_cannot_start_is_one_line_and_everything_is_stopped_again(
    tmp_path: Path, what: str
) -> None:
    act, code, said = STARTS[what]
    async with beside(tmp_path, World()):
        pass  # so that all that is loaded once has been
    before = in_use()
    world = World(**{what.partition(",")[0]: act})
    with pytest.raises((StartError, ExceptionGroup)) as raised:
        async with beside(tmp_path, world):
            raise AssertionError("started")
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, StartError)
    assert str(error).startswith(said)
    assert "\n" not in str(error)
    assert error.exit_code == code
    if not what.endswith("_init"):
        assert set(world.stopped) == KINDS
    await until(lambda: in_use() <= before)
    async with beside(tmp_path, World()) as service:
        assert (await service.push(METRIC)).status_code == 200


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_on() -> None:
    while not finished.is_set():
        try:
            await asyncio.wait_for(finished.wait(), 10)
        except asyncio.CancelledError:
            continue


finished: asyncio.Event


@pytest.mark.anyio
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("act", [raising(ValueError("no")), raising(SystemExit("no")), cancelled, hang, hang_on])
async def test_a_stop_that_fails_or_hangs_keeps_nobody_else_from_stopping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, act: Callable[..., Any]
) -> None:
    global finished
    finished = asyncio.Event()
    async with beside(tmp_path, World()):
        pass
    before = in_use()
    world = World(**{f"{kind}_stop": act})
    async with beside(tmp_path, world) as service:
        assert (await service.push(METRIC)).status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 4
    finished.set()
    assert KINDS - {kind} <= set(world.stopped)
    hangs = act in (hang, hang_on)
    said = f"{kind} beside did not stop " + ("within 1 s" if hangs else "cleanly")
    assert [record.getMessage() for record in errors(caplog)] == ([] if act is cancelled else [said])
    await until(lambda: in_use() <= before)


LOOSE = {
    "broken.py": "import nothing_of_that_name",
    "newer.py": "METRICS_SERVICE_API = 2\nfrom pipeline import hookimpl\n@hookimpl\ndef declare_components():\n    return []\n",
}


def test_a_plugin_that_was_left_out_is_named_wherever_one_looks(tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    for name, source in LOOSE.items():
        (tmp_path / "loose" / name).write_text(source)
    reasons = {
        "broken.py": "ModuleNotFoundError: No module named 'nothing_of_that_name'",
        "newer.py": "ValueError: was made for version 2 of the plugin API (METRICS_SERVICE_API), this service has version 1",
    }
    with process(tmp_path, "--plugins-dir", "loose") as (_, base):
        ready = httpx.get(f"{base}/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        states = ready.json()["components"]
        left_out = {name: state for name, state in states.items() if name.startswith("plugin/")}
        assert left_out == {f"plugin/{name}": f"left out: {reason}" for name, reason in reasons.items()}
    log = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    lines = [line["message"] for line in log if line["logger"] == "plugins"]
    assert lines == [f"left out loose/{name}: {reason}" for name, reason in reasons.items()]
    listed = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "components", "--plugins-dir", "loose"],
        env=command(tmp_path)[1],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stderr.splitlines() == [f"broken: loose/{name}: {reason}" for name, reason in reasons.items()]
