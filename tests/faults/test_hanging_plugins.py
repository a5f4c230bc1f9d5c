"""SIGTERM ends the process in time, whatever a plugin does in Python or with the GIL released. With a negative control.

What was acknowledged is stored by the next start.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pipeline.hard_exit import MARGIN
from tests.faults.changed import plugin
from tests.faults.filling import settle
from tests.faults.sizes import sized
from tests.running import KEY, command, free_port, process, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

STOP_TIMEOUT = 1.0
IN_TIME = 2 * STOP_TIMEOUT + MARGIN + 4
"""Seconds that a stop may take here: what is documented, and some for busy cores."""
PUSH = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}

HANGING = """
import asyncio
import ctypes
import os
import signal
import threading
import time

from pipeline import ComponentConfig, Declaration, Exporter, Extension, Signal, hookimpl


def told():
    return os.path.exists("hang")


def in_c():
    ctypes.CDLL(None).sleep(3600)  # with the GIL released, and not resumed by a signal handler of Python
    in_c()


async def swallow():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass


class Hanging(Exporter):
    at_once = True

    async def start(self):
        if "WHAT" == "start":
            await swallow()
        if "WHAT" == "busy start":
            while True:
                pass

    async def export(self, delivery):
        if not told():
            return
        open("hangs", "w").close()
        if "WHAT" == "sleep":
            time.sleep(3600)
        if "WHAT" == "loop":
            while True:
                pass
        if "WHAT" == "c":
            in_c()
        if "WHAT" == "executor":
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
        if "WHAT" == "thread":
            threading.Thread(target=self.sleep).start()
        if "WHAT" == "task":
            self.task = asyncio.create_task(swallow())

    def sleep(self):
        time.sleep(3600)

    async def stop(self):
        if "WHAT" == "stop":
            time.sleep(3600)


if "WHAT" == "unguarded":
    from pipeline.hard_exit import HardExit
    HardExit.within = lambda *given: None
    Hanging.export = lambda self, delivery: in_c() if told() and not open("hangs", "w").close() else asyncio.sleep(0)


@hookimpl
def declare_components():
    return [Declaration("hanging", Hanging, ComponentConfig, takes=frozenset(Signal))]
"""
CONFIG = """
extends: production
exporters: {hanging: }
service:
  pipelines:
    events: {exporters: [sqlite, series, hanging]}
"""


@dataclass
class Ended:
    """How a process ended."""

    code: int | None
    """None if it did not end in time."""
    seconds: float
    log: str


def prepared(folder: Path, what: str) -> tuple[str, ...]:
    """The arguments of a service whose plugin hangs so."""
    (folder / "own.yaml").write_text(CONFIG)
    return ("--set", f"service.stop_timeout={STOP_TIMEOUT}", *plugin(folder, HANGING.replace("WHAT", what)))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def terminated(folder: Path, running: subprocess.Popen[bytes], times: int = 1) -> Ended:
    began = time.monotonic()
    for _ in range(times):
        running.send_signal(signal.SIGTERM)
        time.sleep(0.2 if times > 1 else 0)
    try:
        code: int | None = running.wait(IN_TIME)
    except subprocess.TimeoutExpired:
        code = None
    return Ended(code, time.monotonic() - began, (folder / "service.log").read_text())


def stopped_while_it_hangs(folder: Path, what: str, times: int = 1) -> Ended:
    """Push, have the plugin hang, and terminate the process."""
    with process(folder, *prepared(folder, what), config=str(folder / "own.yaml")) as (running, base):
        (folder / "hang").touch()
        httpx.post(f"{base}/metrics", json=PUSH, headers={"X-API-Key": KEY}).raise_for_status()
        if what != "stop":
            wait_for(folder / "hangs")
        ended = terminated(folder, running, times)
        running.kill()
    (folder / "hang").unlink()
    return ended


def check_stored(folder: Path) -> None:
    with process(folder) as (_, base):
        settle(base, 20)
    assert rows(folder / "metrics.db", "SELECT count(*) FROM metrics") == [(1,)]


HANGS = [("c", 70), ("thread", 0), ("sleep", 70), ("loop", 70), ("stop", 70), ("executor", 0), ("task", 0)]
HANGING_STARTS = [("start", 0), ("busy start", 70)]


@pytest.mark.parametrize(("what", "code"), HANGS[: sized(2, len(HANGS))])
def test_sigterm_ends_a_process_whose_plugin_hangs(tmp_path: Path, what: str, code: int) -> None:
    ended = stopped_while_it_hangs(tmp_path, what)
    assert ended.code == code, ended.log
    said = "the process does not end, so it is ended: "
    assert said in ended.log
    (line,) = (each for each in ended.log.splitlines() if said in each)
    if what in ("sleep", "loop", "c", "stop", "thread"):
        assert "exporter/hanging in " in line
    check_stored(tmp_path)


def test_a_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    ended = stopped_while_it_hangs(tmp_path, "c", times=2)
    assert ended.code in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert ended.seconds < MARGIN


def test_a_process_without_its_last_resort_is_found(tmp_path: Path) -> None:
    """The negative control."""
    assert stopped_while_it_hangs(tmp_path, "unguarded").code is None


@contextmanager
def starting(folder: Path, what: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose start hangs."""
    called, environ = command(folder, *prepared(folder, what), config=str(folder / "own.yaml"))
    environ |= {"METRICS_SERVICE_PORT": str(free_port()), "METRICS_SERVICE_HOST": "127.0.0.1"}
    with (folder / "service.log").open("wb") as log:
        running = subprocess.Popen(called, env=environ, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 20
        while not (folder / "metrics.db").exists():  # its extension starts first
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)
        assert running.poll() is None
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(("what", "code"), HANGING_STARTS[: sized(1, 2)])
def test_sigterm_ends_a_start_that_hangs(tmp_path: Path, what: str, code: int) -> None:
    with starting(tmp_path, what) as running:
        ended = terminated(tmp_path, running)
    assert ended.code == code, ended.log


def test_children_inherit_no_blocked_signals(tmp_path: Path) -> None:
    with process(tmp_path) as (running, _):
        status = Path(f"/proc/{running.pid}/status").read_text()
    (blocked,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    mask = int(blocked, 16)
    assert not any(mask & (1 << (number - 1)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
