"""The wall clock is moved under a service that runs: nothing is lost, nobody is locked out, nothing is deleted before its time.

The clock is moved by a library that is preloaded; retention cleans up several times a second, and would delete what is two days old. With
negative controls: a rate limit by the wall clock, and a retention that trusts it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import plugin
from tests.faults.filling import METRICS, Pushers, settle
from tests.faults.sizes import sized
from tests.programs import need
from tests.running import KEY, process, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 900))]

HOUR, DAY = 3600 + 60, 24 * 3600
"""Seconds; an hour by which retention sees that the clock was moved, however busy the machine is when it looks."""
TO_2038, TO_2100 = 2**31 + 10, 4_102_444_800
"""Seconds since 1970; 2038 by ten more than fit 32 bits."""
PUSHES = sized(15, 300)
"""That many are answered at each time."""
EAGER = ("--set", "extensions.retention.interval=0.1", "--set", "extensions.retention.days=2")


class Clock:
    """The wall clock of a service."""

    def __init__(self, folder: Path) -> None:
        self._ahead = folder / "ahead"
        self._library = folder / "moved_clock.so"
        source = Path(__file__).with_name("moved_clock.c")
        options = ("-O1", "-Wall", "-Werror", "-shared", "-fPIC")
        subprocess.run([need("gcc"), *options, "-o", self._library, source, "-ldl"], check=True)
        self.move(0)

    def move(self, seconds: int) -> None:
        """It is ahead of ours by that."""
        with self._ahead.open("r+b" if self._ahead.exists() else "w+b", buffering=0) as file:
            file.write(seconds.to_bytes(8, "little", signed=True))

    @property
    def variables(self) -> dict[str, str]:
        """With which a service goes by it."""
        return {"LD_PRELOAD": str(self._library), "CLOCK": str(self._ahead)}

    @contextmanager
    def service(self, folder: Path, *arguments: str) -> Iterator[str]:
        """A service that goes by it; yields where it is."""
        with process(folder, *EAGER, *arguments, METRICS_RATE_LIMIT="20000", **self.variables) as (_, base):
            yield base


def moves() -> dict[str, int]:
    """Where the clock is moved to, and by how many seconds."""
    now = int(time.time())
    by = {"an hour ahead": HOUR, "an hour behind": -HOUR, "a day ahead": DAY, "a day behind": -DAY}
    return by | {"2038": TO_2038 - now, "2100": TO_2100 - now, "1970": 10 - now}


def ids_in(folder: Path) -> dict[str, int]:
    """How many items of each push are stored."""
    return dict(rows(folder / "metrics.db", "SELECT json_extract(metadata, '$.id'), count(*) FROM metrics GROUP BY 1"))


def check_stored(folder: Path, base: str, pushers: Pushers) -> None:
    """All that was acknowledged until now is there."""
    acknowledged = set(pushers.acknowledged)
    settle(base, 20)
    stored = ids_in(folder)
    assert acknowledged - stored.keys() == set(), "lost, or deleted too early"
    assert {push for push, count in stored.items() if count != METRICS} == set(), "in part or twice"


def keep_checking(folder: Path, base: str, pushers: Pushers) -> None:
    """Until something is wrong."""
    while True:
        pushers.wait_for(200, more=1, seconds=10)
        check_stored(folder, base, pushers)


def test_a_clock_that_is_moved_costs_nothing(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with clock.service(tmp_path) as base, httpx.Client(base_url=base) as idle, Pushers(base) as pushers:
        pushers.wait_for(200, more=PUSHES, seconds=20)
        for where, seconds in moves().items():
            clock.move(seconds)
            pushers.wait_for(200, more=PUSHES, seconds=10)
            assert idle.get("/health").status_code == 200
            check_stored(tmp_path, base, pushers)
            assert (pushers.wrong, set(pushers.statuses)) == ([], {200}), where
            if where == "1970":
                break  # what is stamped so is old once the clock is right again, as its rows say
            clock.move(0)
            pushers.wait_for(200, more=PUSHES, seconds=10)
            check_stored(tmp_path, base, pushers)
        assert (pushers.wrong, set(pushers.statuses)) == ([], {200})
    ((year,),) = rows(tmp_path / "metrics.db", "SELECT count(DISTINCT substr(timestamp, 1, 4)) FROM metrics")
    assert year >= 4, "the clock was not moved"
    assert "nothing is deleted: the clock was moved" in (tmp_path / "service.log").read_text()


def push_keyed(base: str, name: str) -> bool:
    """Push under an `Idempotency-Key`, the same each time. Returns whether that was a repeat."""
    document = {"service": "test", "metrics": [{"type": "custom", "value": 1, "metadata": {"id": name}}]}
    answer = httpx.post(f"{base}/metrics", json=document, headers={"X-API-Key": KEY, "Idempotency-Key": name})
    assert answer.status_code == 200, answer.text
    return "Idempotent-Replay" in answer.headers


def test_what_is_sent_again_after_the_clock_was_moved_is_stored_once(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with clock.service(tmp_path) as base:
        for where, seconds in {"now": 0, **moves()}.items():
            clock.move(seconds)
            assert not push_keyed(base, where)
            clock.move(seconds + DAY + HOUR)
            assert push_keyed(base, where), where
            assert not push_keyed(base, f"after {where}"), "with which what is too old would be deleted"
            assert push_keyed(base, where), where
            assert push_keyed(base, "now"), where
        settle(base, 20)
    assert set(ids_in(tmp_path).values()) == {1}


def test_what_is_sent_again_after_a_start_with_another_clock_is_stored_once(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    sent: list[str] = []
    for where, seconds in (("1970", moves()["1970"]), ("now", 0), ("2100", moves()["2100"])):
        clock.move(seconds)
        with clock.service(tmp_path) as base:
            assert all(push_keyed(base, each) for each in sent), where
            assert not push_keyed(base, where)
            clock.move(0)  # it is put right
            sent.append(where)
            assert all(push_keyed(base, each) for each in sent), where
            settle(base, 20)
    assert set(ids_in(tmp_path).values()) == {1}


TRUSTING = """
import time

import pipeline.bucket
import plugins.extensions.retention.extension
from pipeline import hookimpl

pipeline.bucket.TokenBucket.__init__.__defaults__ = (time.time,)
plugins.extensions.retention.extension.CLOCK_TOLERANCE = float("inf")
plugins.extensions.retention.extension.CLOCK = None


@hookimpl
def declare_components():
    return []
"""


def test_the_same_moves_find_a_service_that_goes_by_the_wall_clock(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with clock.service(tmp_path, *plugin(tmp_path, TRUSTING)) as base, Pushers(base) as pushers:
        pushers.wait_for(200, more=PUSHES, seconds=20)
        clock.move(2 * DAY + HOUR)
        with pytest.raises(AssertionError, match="deleted too early"):
            keep_checking(tmp_path, base, pushers)
        clock.move(0)
        pushers.wait_for(429, more=1, seconds=10)


def push_many_and_stop(clock: Clock, folder: Path) -> set[str]:
    """Pushes with the right clock: the ids that are stored."""
    with clock.service(folder) as base:
        with Pushers(base) as pushers:
            pushers.wait_for(200, more=PUSHES, seconds=20)
        check_stored(folder, base, pushers)
    return set(ids_in(folder))


def wait_for_log(folder: Path, text: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while text not in (folder / "service.log").read_text():
        assert time.monotonic() < deadline, f"not in the log: {text}"
        time.sleep(0.02)


def test_a_start_with_the_clock_in_2100_deletes_nothing(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    stored = push_many_and_stop(clock, tmp_path)
    clock.move(moves()["2100"])
    for start in range(2):
        with clock.service(tmp_path) as base:
            assert not push_keyed(base, f"in 2100, {start}")
            wait_for_log(tmp_path, "nothing is deleted from metrics: ")
            settle(base, 20)
        assert stored - ids_in(tmp_path).keys() == set()
        (tmp_path / "service.log").write_text("")
    clock.move(0)
    with clock.service(tmp_path):
        pass
    assert stored - ids_in(tmp_path).keys() == set()


def test_the_same_start_finds_a_service_that_trusts_the_clock(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    stored = push_many_and_stop(clock, tmp_path)
    clock.move(moves()["2100"])
    with clock.service(tmp_path, *plugin(tmp_path, TRUSTING)):
        deadline = time.monotonic() + 20
        while stored & ids_in(tmp_path).keys():
            assert time.monotonic() < deadline, "nothing was deleted"
            time.sleep(0.05)
