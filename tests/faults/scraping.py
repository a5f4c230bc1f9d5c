"""A scraper that asks all the time, and notes every counter that goes back and every scrape that fails."""

from __future__ import annotations

import threading
from types import TracebackType

import httpx

from tests.scrapes import Sample, samples

PAUSE = 0.05
_COUNTING = ("_total", "_bucket", "_count", "_sum")


class Scraper:
    """Scrapes in a thread until told to end. A series that is not there for a while may begin anew."""

    def __init__(self, url: str) -> None:
        self.wrong: list[str] = []
        self.scrapes = 0
        self._url = url
        self._last: dict[Sample, float] = {}
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(20)

    def value(self, name: str) -> float:
        """What the last scrape showed of a metric without labels; 0 if nothing."""
        return self._last.get((name, frozenset()), 0.0)

    def wait_for(self, name: str, than: float, *, more: bool, seconds: float = 15) -> None:
        """Wait until a metric without labels is more, or less, than that."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.value(name) > than if more else self.value(name) < than, seconds
            ), f"{name} stays {self.value(name)}: {self.wrong[:5]}"

    def _run(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._ended.wait(PAUSE):
                try:
                    answer = client.get(self._url)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    self.wrong.append(f"{error!r}")
                    continue
                self._compare(samples(answer.text, prefix=""))

    def _compare(self, found: dict[Sample, float]) -> None:
        back = [
            f"{name} {dict(labels)}: from {self._last[name, labels]} to {value}"
            for (name, labels), value in found.items()
            if name.endswith(_COUNTING) and value < self._last.get((name, labels), value)
        ]
        with self._changed:
            self.wrong += back
            self._last = found
            self.scrapes += 1
            self._changed.notify_all()
