"""The last resort: a thread that ends the process when something keeps it from ending.

What was acknowledged is in the journals, so this is as safe as a kill. It works as long as other threads may run: a plugin that blocks
the event loop in Python, or in C without the GIL, does not stop it. One that holds the GIL is ended by the supervisor of the process.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from time import monotonic
from typing import NoReturn

from pipeline.blame import UNKNOWN, blame_of

MARGIN = 4.0
"""Seconds beyond `service.drain_delay` and twice `service.stop_timeout` that a stop may take."""
LOG_SECONDS = 1.0
"""Seconds for the last log line: standard error may block."""

_log = logging.getLogger("service")


class HardExit:
    """Ends the process with an exit code when the time set by `within` is over."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._until: float | None = None
        self._thread: threading.Thread | None = None
        self._exit_code = 0
        self._message = ""

    def within(self, seconds: float, exit_code: int, message: str = "") -> None:
        """Give the process `seconds` to end, or fewer if an earlier call gave it fewer.

        `message` is written to standard error before it is ended.
        """
        with self._changed:
            until = monotonic() + seconds
            self._until = until if self._until is None else min(self._until, until)
            self._exit_code, self._message = exit_code, message
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="hard exit", daemon=True)
                self._thread.start()
            self._changed.notify()

    def call_off(self) -> None:
        """Cancel the exit."""
        with self._changed:
            self._until = None
            self._changed.notify()

    def _wait(self) -> None:
        with self._changed:
            while self._until is not None and (left := self._until - monotonic()) > 0:
                self._changed.wait(left)
            self._thread = None
            if self._until is None:
                return
            exit_code, message = self._exit_code, self._message
        end_now(exit_code, message)


def end_now(exit_code: int, message: str = "") -> NoReturn:
    """End the process, and say which component keeps it from ending."""
    last = threading.Thread(target=_say, args=(message, threading.get_ident()), name="last words", daemon=True)
    last.start()
    last.join(LOG_SECONDS)
    os._exit(exit_code)


def _say(message: str, caller: int) -> None:
    _log.critical("the process does not end, so it is ended: %s", "; ".join(_at_work(caller)) or "no thread is at work")
    if message:
        sys.stderr.write(f"{message}\n")
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    sys.stdout.flush()


def _at_work(caller: int) -> Iterator[str]:
    """The place of each thread that keeps the process alive: the main thread, and those that the interpreter waits for."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread.daemon or thread.ident in (None, caller, threading.get_ident()) or frame is None:
            continue
        who = blame_of(frame)
        component = "" if who.component == UNKNOWN else f"{who.component} "
        yield f"{component}in {thread.name} at {who.place}"
