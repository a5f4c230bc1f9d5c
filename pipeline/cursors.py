"""Cursors on their way into a journal's file, from the event loop, where exporters move, to the committer's thread, which saves them."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from pipeline.books import Cursor


class MovedCursors:
    """Cursors that have moved since they were last saved, by exporter. Any thread may call this, and none of them goes back."""

    def __init__(self) -> None:
        self._moved: dict[str, Cursor] = {}
        self._gone: set[str] = set()
        self._lock = threading.Lock()

    def note(self, exporter: str, cursor: Cursor) -> None:
        """An exporter has got there; one that is known to be further stays there."""
        with self._lock:
            self._gone.discard(exporter)
            self._put(exporter, cursor)

    def take(self) -> dict[str, Cursor]:
        """All of them, to be saved."""
        with self._lock:
            taken, self._moved = self._moved, {}
        return taken

    def put_back(self, cursors: Mapping[str, Cursor]) -> None:
        """They could not be saved: to be saved the next time, unless they have moved on, or are gone, meanwhile."""
        with self._lock:
            for exporter, cursor in cursors.items():
                if exporter not in self._gone:
                    self._put(exporter, cursor)

    def _put(self, exporter: str, cursor: Cursor) -> None:
        known = self._moved.get(exporter)
        if known is None or known.position <= cursor.position:
            self._moved[exporter] = cursor

    def forget(self, exporter: str) -> None:
        """The exporter is gone."""
        with self._lock:
            self._gone.add(exporter)
            self._moved.pop(exporter, None)

    def __bool__(self) -> bool:
        return bool(self._moved)
