"""What must hold behind every proxy that we ship a site for; the tests of each inherit it."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import warnings
from pathlib import Path

import httpx
import pytest

from tests.deploy.proxies import INSIDE, ROOT, Site
from tests.faults.hostile import ROWS
from tests.faults.raw import GOOD, push, request, status
from tests.leaks import secret
from tests.running import ADMIN_KEY, KEY, OURS, command

PUSH = json.loads(GOOD)
CLOSED_PATHS = [
    "/prometheus",
    "/admin/database/size",
    "/docs",
    "/openapi.json",
    "/health/ready",
    "//admin/database/size",
]
ENCODED_PATHS = [
    "/%61dmin/database/size",
    "/health/../admin/database/size",
    "/x/..%2fadmin/database/size",
    "/health/%72eady",
]
SMUGGLING = [name for name in ROWS if name.split()[0] in ("B1", "B2", "B3", "B6")]
HEADERS = ("x-frame-options", "x-content-type-options", "strict-transport-security")
LAST = request("GET /health HTTP/1.1", "Connection: close")
"""Behind others on a connection: whoever closes it has executed all that came before."""


def is_ours(answer: httpx.Response) -> bool:
    """Whether this is an error in the form of docs/api.md."""
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert said["status_code"] == answer.status_code
    assert said["detail"]
    assert said["request_id"] == answer.headers.get("x-request-id", said["request_id"]) != ""
    return True


def has_security_headers(answer: httpx.Response) -> bool:
    """Whether they are there, each once."""
    return all(len(answer.headers.get_list(name)) == 1 for name in HEADERS)


class BehindAProxy:
    """Inherited by a class with the fixture `site`: a running proxy, in front of `service`."""

    def test_a_push_arrives(self, site: Site) -> None:
        before = site.stored()
        with site.client() as client:
            answer = client.post("/metrics", json=PUSH, headers={"X-Request-ID": "mine"})
            assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
            assert answer.headers.get_list("x-request-id") == ["mine"]
            assert answer.headers["x-ratelimit-limit"] == "5000"
            assert has_security_headers(answer)
            assert client.post("/metrics", content=iter([GOOD])).status_code == 200, "in chunks"
        assert site.stored() == before + 2

    def test_a_body_may_be_as_large_as_the_service_allows_and_no_larger(self, site: Site) -> None:
        with site.client() as client:
            assert client.post("/metrics", content=GOOD.ljust(10_000_000)).status_code == 200
            answer = client.post("/metrics", content=GOOD.ljust(10_000_001))
            assert answer.status_code == 413
            assert is_ours(answer)
            assert has_security_headers(answer)
            chunked = client.post("/metrics", content=iter([GOOD, bytes(10_000_000)]))
            assert chunked.status_code == 413

    def test_headers_may_be_as_large_as_the_service_allows(self, site: Site) -> None:
        with site.client() as client:
            assert client.get("/health", headers={"X": "y" * 15_000}).status_code == 200
            assert client.get("/health", params={"x": "y" * 8100}).status_code == 200
            assert client.get("/health", headers={"X": "y" * 60_000}).status_code in (400, 431)
            assert client.get("/health", params={"x": "y" * 9_000}).status_code == 414

    def test_the_limit_of_a_key_is_the_services_and_its_answer_passes_unchanged(self, site: Site) -> None:
        words, environ = command(site.folder)
        words = [*OURS, "keys", "create", "--config", "production", "--service", "small", "--rate-limit", "2"]
        made = subprocess.run(words, env=environ, cwd=site.folder, capture_output=True, text=True, check=True).stdout
        key = secret(next(word for word in made.split() if word.startswith("mcp_metrics_")))
        with site.client(key=key) as client:
            answers = [client.post("/metrics", json=PUSH) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert is_ours(answers[2])
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert len(answers[2].headers.get_list("retry-after")) == 1
        assert "Limit: 2 requests/minute" in answers[2].json()["detail"]
        assert has_security_headers(answers[2])

    def test_what_the_service_allows_the_proxy_does_not_refuse(self, site: Site) -> None:
        with site.client() as client:
            assert {client.post("/metrics", json=PUSH).status_code for _ in range(100)} == {200}

    def test_health_is_answered_and_not_logged(self, site: Site) -> None:
        with site.client(key=None) as client:
            for path in ("/health", "/health/live"):
                assert client.get(path, headers={"User-Agent": "monitor"}).status_code == 200
            assert client.get("/rate-limit", headers={"User-Agent": "marker"}).status_code == 401
        logged = site.log(self.access_log)
        assert "marker" in logged
        assert "monitor" not in logged

    access_log = "access.log"

    @pytest.mark.parametrize("path", CLOSED_PATHS + ENCODED_PATHS)
    def test_what_is_for_the_inside_is_closed_to_the_outside(self, site: Site, path: str) -> None:
        headers = ("Connection: close", f"X-Forwarded-For: {INSIDE}")
        answer = site.exchange(request(f"GET {path} HTTP/1.1", *headers, key=ADMIN_KEY))
        assert status(answer) in ((403,) if path in CLOSED_PATHS else (403, 404))
        assert b"file_bytes" not in answer
        assert b"components" not in answer

    def test_a_closed_page_says_so_as_the_api_does(self, site: Site) -> None:
        with site.client(key=ADMIN_KEY) as client:
            answer = client.get("/admin/database/size")
            assert answer.status_code == 403
            assert is_ours(answer)
            assert "x-request-id" in answer.headers
            assert has_security_headers(answer)

    def test_it_is_open_to_the_inside(self, site: Site) -> None:
        with site.client(INSIDE, key=ADMIN_KEY) as client:
            assert "http_requests_total" in client.get("/prometheus").text
            assert client.get("/admin/database/size").json()["file_bytes"] > 0
            assert client.get("/health/ready").json()["components"]
            assert client.get("/openapi.json").json()["openapi"] == "3.1.0"
            assert client.get("/docs").status_code == 404, "the proxy asks, and in production there is no such page"

    def test_addresses_are_those_of_clients_whatever_they_say_of_themselves(self, site: Site) -> None:
        with site.client("127.0.0.3") as stranger:
            for number in range(21):
                spoofed = {"X-API-Key": f"no key of ours {number}", "X-Forwarded-For": f"198.51.100.{number}"}
                answer = stranger.get("/rate-limit", headers=spoofed)
        assert answer.status_code == 429
        assert answer.json()["detail"] == "Too many unknown API keys from this address"
        with site.client("127.0.0.4") as another:
            assert another.get("/rate-limit", headers={"X-API-Key": "no key of ours"}).status_code == 401

    def test_port_80_redirects_visitors_and_nobody_with_a_key(self, site: Site) -> None:
        answer = site.plain("GET", "/")
        assert (answer.status_code, answer.headers["location"]) == (308, "https://metrics.yourdomain.com/")
        before = site.stored()
        for method, path, key in [("POST", "/metrics", KEY), ("GET", "/rate-limit", KEY), ("GET", "/", KEY)]:
            answer = site.plain(method, path, headers={"X-API-Key": key}, content=GOOD if method == "POST" else None)
            assert (answer.status_code, answer.headers.get("location")) == (403, None)
            assert is_ours(answer)
            assert "it was not encrypted" in answer.json()["detail"]
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert site.plain("GET", "/", headers=bearer).status_code == 403
        assert site.plain("POST", "/", content=GOOD).status_code == 403
        assert site.plain("GET", "/health").status_code == 403
        assert site.stored() == before

    @pytest.mark.parametrize("name", SMUGGLING)
    def test_a_request_in_the_body_of_another_is_not_executed(self, site: Site, name: str) -> None:
        data = ROWS[name][0]
        assert isinstance(data, bytes)
        marked = data.replace(b'"custom"', b'"health_check"')
        sql = "SELECT count(*) FROM metrics WHERE metric_type = 'health_check'"
        before = site.stored(sql)
        site.exchange(marked + LAST)
        assert site.stored(sql) == before

    def test_two_requests_on_one_connection_are_both_executed(self, site: Site) -> None:
        """The control of the one above: a push that is not smuggled is found by the same count."""
        sql = "SELECT count(*) FROM metrics WHERE metric_type = 'protocol_latency'"
        before = site.stored(sql)
        site.exchange(2 * push(GOOD.replace(b'"custom"', b'"protocol_latency"')) + LAST)
        assert site.stored(sql) == before + 2

    def test_upgrade_is_ignored(self, site: Site) -> None:
        pushes_with_upgrade(site)

    def test_tls_is_1_2_or_1_3_with_ciphers_that_there_are(self, site: Site) -> None:
        for version, good in [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)]:
            context = ssl.create_default_context(cafile=site.ca)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
            context.set_ciphers("ALL:@SECLEVEL=0")
            with socket.create_connection(("127.0.0.1", site.ports.secure), timeout=20) as plain:
                try:
                    with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                        assert good
                        assert secure.version() == version.replace("_", ".")
                except ssl.SSLError:
                    assert not good


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA")


def pushes_with_upgrade(site: Site) -> None:
    """Pushes as Java sends them, in one packet and in two, each answered once; so are those of others on the proxy's connections."""
    before = site.stored()
    length = push(GOOD, *UPGRADE)
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    chunked = request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", *UPGRADE, body=chunks)
    with site.client() as other:
        for data in (length, chunked) * 5:
            header = data.index(b"\r\n\r\n") + 4
            for pieces in ([data + LAST], [data[:header], data[header:] + LAST]):
                answer = site.exchange(*pieces)
                assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"HTTP/1.1 ") == 2, answer
                assert other.post("/metrics", json=PUSH).status_code == 200
    assert site.stored() == before + 2 * 2 * 2 * 5


def ciphers_that_there_are(site: str, directive: str) -> bool:
    """Whether OpenSSL knows every cipher that a site of ours names."""
    text = (ROOT / Path(site)).read_text(encoding="utf-8")
    (line,) = [line.strip().rstrip(";") for line in text.splitlines() if line.strip().startswith(directive)]
    names = line.split()[-1].split(":")
    known = subprocess.run(["openssl", "ciphers", "ALL"], capture_output=True, text=True, check=True).stdout.strip()
    return len(names) == 6 and set(names) <= set(known.split(":"))
