"""Signals: what asks the service of a process to stop, or to load its configuration again."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import anyio

from pipeline import systemd
from pipeline.config.model import Configuration
from pipeline.containment import FAULT
from pipeline.hard_exit import HardExit
from pipeline.service import Service

STOPPING = (signal.SIGTERM, signal.SIGINT)
BY_SIGNAL = 128
"""Added to the number of a signal: the exit code of a process that a signal ended, where it could not end by the signal itself."""


async def run_until_signalled(service: Service, load: Callable[[], Configuration], hard_exit: HardExit) -> None:
    """Run the service until SIGTERM or SIGINT; a second one ends the process at once, which is safe. SIGHUP has the configuration
    loaded again, by `load`, in a thread; several while one is at work are one.

    A stop that takes too long, whatever a plugin does, is ended by `hard_exit`.
    """
    async with anyio.create_task_group() as tasks:
        asked = asyncio.Event()

        async def reload_when_asked() -> None:
            await service.started.wait()
            while True:
                await asked.wait()
                asked.clear()
                await service.reload(load)

        service.tell_stopping, service.tell_rescue = hard_exit.within, hard_exit.call_off
        with listening(service, asked.set, hard_exit):
            tasks.start_soon(reload_when_asked)
            tasks.start_soon(_settle_memory, service)
            tasks.start_soon(systemd.keep_informed, service)
            await service.run()
        tasks.cancel_scope.cancel()


@contextmanager
def listening(service: Service, reload: Callable[[], None], hard_exit: HardExit) -> Iterator[None]:
    """Receive signals in a thread, so that a plugin that blocks the event loop does not delay them."""
    hearing = _Hearing(service, reload, hard_exit)
    for each in (*STOPPING, signal.SIGHUP):
        signal.signal(each, hearing.handle)
    hearing.start()
    try:
        yield
    finally:
        _hear_no_more()
        hearing.end()


def _hear_no_more() -> None:
    """Another SIGTERM or SIGINT ends the process at once."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _Hearing:
    """The interpreter writes the number of each signal to a socket as soon as it arrives (`signal.set_wakeup_fd`), in whatever thread.

    The signals are not blocked: processes that a plugin starts would inherit that.
    """

    def __init__(self, service: Service, reload: Callable[[], None], hard_exit: HardExit) -> None:
        self._service = service
        self._reload = reload
        self._hard_exit = hard_exit
        self._loop = asyncio.get_running_loop()
        self._hears, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._before = -1

    def start(self) -> None:
        self._before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, name="signals", daemon=True).start()

    def end(self) -> None:
        signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
        self._told.close()  # which ends the thread

    def _hear(self) -> None:
        stopping = False
        with self._hears:
            while numbers := self._hears.recv(64):
                if self._before != -1:  # uvloop's, which wakes its loop
                    _pass_on(self._before, numbers)
                for number in numbers:
                    if number in STOPPING and stopping:
                        os._exit(BY_SIGNAL + number)
                    if (
                        number in STOPPING
                    ):  # a reload needs the event loop, so `handle` is enough: both would reload twice
                        stopping = True
                        self._received(number)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Called in the main thread. It suffices alone if a plugin has replaced the socket."""
        if number in STOPPING:
            _hear_no_more()
        self._received(number)

    def _received(self, number: int) -> None:
        if number in STOPPING:
            self._hard_exit.within(self._service.seconds_to_stop, FAULT)
            self._call(self._service.ask_to_stop)
        elif number == signal.SIGHUP:
            self._call(self._reload)

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)


def _pass_on(descriptor: int, numbers: bytes) -> None:
    with suppress(OSError):  # full, and so awake
        os.write(descriptor, numbers)


async def _settle_memory(service: Service) -> None:
    """What start-up made lives as long as the process: the collector need not look at it again. While it did, the p99 of a small
    push was about 24 ms, and 7 ms since (uvicorn, one core)."""
    await service.started.wait()
    gc.collect()
    gc.freeze()
    # A push makes some thirty containers that are gone when it is answered: looking for cycles every 700 is for nothing.
    gc.set_threshold(20_000, 20, 20)
