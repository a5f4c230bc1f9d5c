"""Headers that make a library raise: whatever they hold, no page answers 500, and the log shows no traceback.

Each value of each header goes to one of the routes in turn; with SOAK=1 to all of them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import httpx
import pytest

from tests.faults.raw import exchange, status
from tests.faults.sizes import sized
from tests.faults.test_hostile_inputs import SERVERS, Served, is_ours, serving
from tests.running import ADMIN_KEY

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

HOSTS = (
    "a..b", ".a", "a" * 64, "a." + "b" * 64, "xn--a", "xn--" + "9" * 50, "xn--\xff", "\xe4", "[::1", "a:x", "a:99999999", "a b", "",
    "%41", "-a-", ".".join(["a" * 63] * 4),
)  # fmt: skip
VALUES = (
    "", "\xff\xfe", "=" * 100, ";" * 1000, "," * 5000, '"', '"\\', "9" * 5000, "5".zfill(5000), "-1", "1" * 19, "a=b; " * 500,
    "*/*;q=" + "9" * 4000, "*/*;q=nan", "*;q=1e999", "bytes=0-" + "9" * 5000, "bytes=-", 'W/"', "Thu, 99 Foo 99999999999",
    "Thu, 01 Jan 99999 00:00:00 GMT", "Sun, 06 Nov 1994 08:49:37 +9999999999", "Basic !!!", "Basic gA==", 'Digest a="', "Bearer \xff",
    "text/html; charset=\xff", "application/json; charset*=utf-8''%ff", 'multipart/form-data; boundary="', 'for="[::1"', "::1%eth0",
    "1.2.3.4:99999", "a..b", "gzip;q=", "100-continue", "trailers, chunked", "close, keep-alive, upgrade", "=?utf-8?b?gA==?=",
)  # fmt: skip
NAMES = (
    "Cookie", "Accept", "Accept-Encoding", "Accept-Language", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since",
    "Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Expect", "Forwarded", "X-Forwarded-For",
    "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Authorization", "X-API-Key", "X-Request-ID", "Idempotency-Key",
    "Connection", "Upgrade", "TE", "Trailer", "Origin", "Referer", "User-Agent", "Date", "Access-Control-Request-Headers", "Remote-Addr",
)  # fmt: skip
ROUTES = (
    "GET /health",
    "GET /docs",
    "GET /admin/database/size",
    "POST /metrics",
    "GET /nothing",
    "GET /?a=%ff",
    "GET scrape",
)
HEADERS = [*(("Host", host) for host in HOSTS), *itertools.product(NAMES, VALUES)]


def answered(served: Served, route: str, name: str, value: str) -> int:
    """The status of a request with this header."""
    method, path = route.split()
    port = served.port
    if path == "scrape":
        path, port = "/metrics", httpx.URL(served.scraped).port or 0
    lines = {"Host": "test", "X-API-Key": ADMIN_KEY, "Connection": "close", name: value}
    if method == "POST":
        lines = {"Content-Length": "0", **lines} if name != "Transfer-Encoding" else lines
    words = [f"{method} {path} HTTP/1.1", *(f"{each}: {text}" for each, text in lines.items()), "", ""]
    return status(exchange(port, "\r\n".join(words).encode("latin-1")))


@pytest.mark.parametrize("server", SERVERS)
def test_no_header_makes_a_page_fail(tmp_path: Path, server: str) -> None:
    quick = ("--set", "receivers.http.docs=true", "--set", "receivers.http.body_timeout=0.1")
    with serving(tmp_path, server, *quick, "--set", f"exporters.prometheus.server={server}") as served:
        turns = itertools.cycle(ROUTES)
        wrong = []
        for name, value in HEADERS:
            for route in (next(turns) for _ in range(sized(1, len(ROUTES)))):
                seen = answered(served, route, name, value)
                if seen == 0 or (seen >= 500 and seen != 501):
                    wrong.append((route, name, value[:40], seen))
        assert wrong == []
        log = (tmp_path / "service.log").read_text().splitlines()
        assert [line for line in log if is_ours(line)] == []


WRONG = '''
"""A service that is wrong on purpose: it takes any Host."""

from pipeline import guard, hookimpl

guard._is_host = lambda value: True


@hookimpl
def declare_components():
    return []
'''


def test_a_service_that_takes_any_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    with serving(tmp_path, "hypercorn", "--plugins-dir", str(tmp_path / "plugins")) as served:
        assert answered(served, "GET /health", "Host", "a..b") == 500
    assert "Traceback" in (tmp_path / "service.log").read_text()
