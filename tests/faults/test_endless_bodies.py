"""Bodies that never end, from clients without a key: others must not wait for them.

The slowest good push is what counts, each on a connection of its own. `ROUND` seconds of each kind; with SOAK=1 many more.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.flood import KINDS
from tests.faults.raw import exchange, push, status
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_hostile_inputs import SERVERS, Served, serving

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(120)]

CLIENTS = 250
ROUND = sized(4, 20)
MANY = ("--set", "receivers.http.max_connections=1024")
USUAL, SLOWEST = 0.05, 2.0
"""How long a good push may take, as a rule and at most, in seconds. A test machine is busy with the clients too."""


def pushes_beside(served: Served, kind: str, clients: int = CLIENTS, seconds: int = ROUND) -> list[float]:
    """How long each good push took while so many clients of a kind sent."""
    taken = []
    words = [sys.executable, "-m", "tests.faults.flood", str(served.port), str(clients), str(seconds), kind]
    with subprocess.Popen(words, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as flood:
        while flood.poll() is None:
            began = time.monotonic()
            assert status(exchange(served.port, push())) == 200
            taken.append(time.monotonic() - began)
            time.sleep(0.01)
        said = json.loads(flood.communicate()[0])
    assert said["connections"] >= clients
    assert said["bytes"] > clients
    return taken


@pytest.mark.parametrize("kind", list(KINDS)[: sized(1, len(KINDS))])
@pytest.mark.parametrize("server", SERVERS)
def test_good_pushes_do_not_wait_for_endless_ones(tmp_path: Path, server: str, kind: str, report: Report) -> None:
    with serving(tmp_path, server, *MANY) as served:
        served.push()
        taken = pushes_beside(served, kind)
        figures = f"median {1000 * statistics.median(taken):.1f}, slowest {1000 * max(taken):.1f} of {len(taken)}"
        report(milliseconds_of_a_good_push=f"{server}, {kind}: {figures}")
        assert statistics.median(taken) < USUAL
        assert max(taken) < SLOWEST


WRONG = '''
"""A service that is wrong on purpose: it parses the bodies of requests that it has refused."""

from pipeline import guard, hookimpl

guard._is_long = lambda headers: False


@hookimpl
def declare_components():
    return []
'''


FEW = 10
"""Clients that have no key and need no processor either; `BUSY` is what they may take, in processors."""
BUSY = 0.1


def busy_with(served: Served) -> float:
    """How many processors the service takes while a few clients send chunks without end and no other client sends a request."""
    words = [sys.executable, "-m", "tests.faults.flood", str(served.port), str(FEW), "3", "chunks"]
    before, began = cpu_seconds(served.pid), time.monotonic()
    subprocess.run(words, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    return (cpu_seconds(served.pid) - before) / (time.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    """How long a process has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("server", SERVERS)
def test_a_refused_client_makes_no_work(tmp_path: Path, server: str) -> None:
    with serving(tmp_path, server) as served:
        assert busy_with(served) < BUSY


def test_a_service_that_parses_what_it_refused_is_found(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    with serving(tmp_path, "hypercorn", "--plugins-dir", str(tmp_path / "plugins")) as served:
        assert busy_with(served) > BUSY
