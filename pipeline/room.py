"""Whether a journal accepts more: there must be room for it, in its own limit and on a disk that answers."""

from __future__ import annotations

from pathlib import Path

from pipeline.reserve import Reserve

ROOM_AGAIN = 0.95
"""Of the limit: a journal that was full takes no more until it holds less than that, lest every other push be refused."""
STUCK_SECONDS = 5.0
"""How long a commit may take before nothing more is gathered behind it."""


class Room:
    """The room that one journal has."""

    def __init__(self, folder: Path) -> None:
        self.reserve = Reserve(folder)
        """The room on the disk; set by who shares it between the journals of a folder."""
        self.takes_pushes = True
        """Whether what the journal holds comes from outside, and not from what was accepted before."""
        self._full = False

    def refusal(self, held: int, coming: int, limit: int, busy_for: float) -> str | None:
        """Why nothing more is accepted, or None. `held`, `coming` and `limit` are in bytes: what waits in the file, what is on its way into
        it, and what it may hold. `busy_for` is how many seconds the commit in hand has taken."""
        if busy_for > STUCK_SECONDS:
            return f"the disk has not answered for {busy_for:.0f} seconds"
        self._full = held + coming >= (ROOM_AGAIN * limit if self._full else limit)
        if self._full:
            return f"the journal is full: {held} of {limit} bytes wait for the slowest exporter"
        return self.reserve.refusal(of_pushes=self.takes_pushes)
