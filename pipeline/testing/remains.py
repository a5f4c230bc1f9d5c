"""What of the world this process holds, and what is left of it when something should have given it back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

LIVES = 3
SETTLE = 1.0
"""Seconds until what was given back must be gone: a thread ends a moment after it was told to."""
_FILES = Path("/proc/self/fd")
_POOLS = ("AnyIO worker thread", "asyncio_")
"""Threads of the event loop's own pools: they are kept for whoever needs one next."""


class Held:
    """The asyncio tasks, threads, and open files and sockets of this process, now, and what is in a folder. What is open is
    known on Linux only."""

    def __init__(self, folder: Path | None = None) -> None:
        self.tasks = {task: f"the task {task.get_name()}: {task.get_coro()}" for task in asyncio.all_tasks()}
        self.threads = {
            thread: f"the thread {thread.name!r}"
            for thread in threading.enumerate()
            if not thread.name.startswith(_POOLS)
        }
        self.open = {(number, target): f"the open file {target}" for number, target in _open_files()}
        self.files = {path: f"the file {path}" for path in (folder.rglob("*") if folder else ())}

    def since(self, before: Held) -> list[str]:
        """What is held now and was not held then, in words."""
        pairs: tuple[tuple[dict[Any, str], dict[Any, str]], ...] = (
            (self.tasks, before.tasks),
            (self.threads, before.threads),
            (self.open, before.open),
            (self.files, before.files),
        )
        return [text for now, then in pairs for key, text in now.items() if key not in then]


def _open_files() -> list[tuple[str, str]]:
    found = []
    if _FILES.is_dir():
        for path in _FILES.iterdir():
            with suppress(OSError):  # the one that reads the folder is closed by now
                found.append((path.name, str(path.readlink())))
    return found


async def left_by(life: Callable[[], Awaitable[T]]) -> tuple[list[str], T]:
    """What is left of every life, in words, and what the last one returned.

    What a library keeps from its first use on is left once, and not held against anybody.
    """
    for _ in range(LIVES):
        before = Held()
        returned = await life()  # it is still referred to: what only garbage collection would give back is held
        left = await _left_since(before)
        if not left:
            break
    return left, returned


async def _left_since(before: Held) -> list[str]:
    until = anyio.current_time() + SETTLE
    while (left := Held().since(before)) and anyio.current_time() < until:  # noqa: ASYNC110 - nothing tells when
        await anyio.sleep(0.01)
    return left
