"""HTTP clients of other languages with their defaults: each push is answered 200 and stored, by both servers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.raw import GOOD
from tests.faults.test_hostile_inputs import SERVERS, Served, serving
from tests.programs import need
from tests.running import KEY, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

SOURCES = Path(__file__).parent / "clients"
PUSHES = 6
"""How many each client sends to each server, every second of them in chunks if it can."""


def java() -> list[str]:
    """`java.net.http.HttpClient` asks for HTTP/2 by `Upgrade`."""
    return [
        need("java", "openjdk-17-jdk-headless"),
        "-XX:TieredStopAtLevel=1",
        "-Xshare:auto",
        str(SOURCES / "Push.java"),
    ]


def go() -> list[str]:
    """net/http. The first run compiles it, which takes longest where Go comes without compiled packages."""
    return [need("go", "golang-go"), "run", str(SOURCES / "push.go")]


def node() -> list[str]:
    """`fetch` and node:http."""
    return [need("node", "nodejs"), str(SOURCES / "push.mjs")]


def curl() -> list[str]:
    """curl with --http2, which asks for it by `Upgrade` too, one connection for all pushes to a server."""
    script = (
        'key=$1 body=$2 pushes=$3; shift 3; for url; do set --; for n in $(seq "$pushes"); do set -- "$@" -o /dev/null "$url"; done;'
        ' "$CURL" -sS --http2 -w "%{http_code}\\n" -H "X-API-Key: $key" -H "Content-Type: application/json"'
        ' -d "$body" "$@"; done'
    )
    os.environ["CURL"] = need("curl")
    return ["sh", "-c", script, "curl"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """A service on each server."""
    first, second = (serving(tmp_path_factory.mktemp(server), server) for server in SERVERS)
    with first as one, second as other:
        yield [one, other]


@pytest.mark.parametrize("client", [java, go, node, curl])
def test_a_client_with_its_defaults_is_served(both: list[Served], client: Callable[[], list[str]]) -> None:
    before = [stored(served) for served in both]
    urls = [f"http://127.0.0.1:{served.port}/metrics" for served in both]
    words = [*client(), KEY, GOOD.decode(), str(PUSHES), *urls]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert ran.stdout.split() == ["200"] * PUSHES * len(both), ran.stderr
    assert [stored(served) for served in both] == [each + PUSHES for each in before]


def stored(served: Served) -> int:
    """How many metrics are in the database, once all that was accepted is."""
    headers = {"X-API-Key": KEY}
    httpx.post(f"http://127.0.0.1:{served.port}/flush", headers=headers, timeout=30).raise_for_status()
    return int(rows(served.folder / "metrics.db", "SELECT count(*) FROM metrics")[0][0])
