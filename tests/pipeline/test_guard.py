"""What stands before every application: which connections may stay, which requests are shown, and who is said to ask."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from pipeline import ListenerConfig
from pipeline.config.load import load_configuration
from pipeline.errors import ConfigError, StartError
from pipeline.guard import (
    HEADER_BYTES,
    HEADERS,
    LENGTH_DIGITS,
    RESERVED_FILES,
    URL_BYTES,
    Guard,
    assert_members,
    files_for_connections,
)
from pipeline.registry import load_registry
from pipeline.serving import Listener
from tests.reloading import reload
from tests.running import environment, running

pytestmark = pytest.mark.anyio

Headers = Sequence[tuple[bytes, bytes]]


class App:
    """An application that remembers what it was asked."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def guard(app: App | None = None, **config: Any) -> Guard:
    return Guard(ListenerConfig(port=0, **config), app or App())


HOST = (b"host", b"a")


async def asked(
    before: Guard, *, headers: Headers = (), hosts: Headers = (HOST,), path: str = "/a", **scope: Any
) -> int:
    """The status of a request with this scope."""
    sent: list[Any] = []
    given = {
        "type": "http",
        "method": "GET",
        "http_version": "1.1",
        "client": ("192.0.2.1", 5),
        "query_string": b"",
        **scope,
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    await before({**given, "path": path, "raw_path": path.encode(), "headers": [*hosts, *headers]}, receive, send)
    return int(sent[0]["status"])


def test_an_address_has_so_many_connections_and_all_together_have_so_many() -> None:
    before = guard(max_connections=4, max_connections_per_address=2)
    assert [before.opened("a"), before.opened("a"), before.opened("a")] == [True, True, False]
    assert [before.opened("b"), before.opened("c"), before.opened("d")] == [True, True, False]
    assert before.refused == {"connections_of_address": 1, "connections": 1}
    before.closed("a")
    assert [before.opened("d"), before.opened("a")] == [True, False]
    for address in "abcd":
        before.closed(address)
    assert (before.connections, before._of_network) == (0, {})


def test_who_has_an_ipv6_network_has_the_connections_of_one_address() -> None:
    before = guard(max_connections_per_address=2)
    assert [before.opened(f"2001:db8::{n}:1") for n in range(3)] == [True, True, False]
    assert before.opened("2001:db8:0:1::1")
    before.closed("2001:db8::1:1")
    assert before.opened("2001:db8::ffff")
    assert [before.opened(address) for address in ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1")] == [
        True,
        True,
        False,
    ]
    assert before.opened("::ffff:192.0.2.2")


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_a_socket_of_both_families_shows_ipv4_as_what_it_is(server: Literal["hypercorn", "uvicorn"]) -> None:
    app = App()
    config = ListenerConfig(
        host="::", port=0, server=server, max_connections_per_address=1, trusted_proxies=["127.0.0.1"]
    )
    listener = Listener(config, app)
    await listener.start(1)
    try:
        async with anyio.create_task_group() as tasks:
            for forwarded in ("203.0.113.9", "::ffff:203.0.113.9", "203.0.113.9, ::ffff:127.0.0.1"):
                tasks.start_soon(_ask, listener.address[1], forwarded)
    finally:
        await listener.stop()
    assert listener.guard.refused == {}
    assert [scope["client"] for scope in app.scopes] == [("203.0.113.9", 0)] * 3


async def _ask(port: int, forwarded: str) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %s\r\n\r\n" % forwarded.encode())
        assert (await stream.receive()).startswith(b"HTTP/1.1 200")


def test_a_trusted_proxy_has_as_many_connections_as_there_are() -> None:
    before = guard(max_connections=3, max_connections_per_address=1, trusted_proxies=["10.0.0.0/8"])
    assert [before.opened("10.1.2.3") for _ in range(4)] == [True, True, True, False]
    assert before.refused == {"connections": 1}


@pytest.mark.parametrize(
    ("status", "reason", "request_"),
    [
        (431, "header", {"headers": [(b"a", b"b")] * HEADERS}),
        (431, "header", {"headers": [(b"a", b"b" * HEADER_BYTES)]}),
        (414, "url", {"path": "/" + "a" * URL_BYTES}),
        (414, "url", {"query_string": b"a" * URL_BYTES}),
        (400, "url", {"path": "*"}),
        (400, "url", {"path": "http://[/"}),
        (400, "protocol", {"http_version": "2.0"}),
        (400, "protocol", {"http_version": "9.9"}),
        (400, "framing", {"headers": [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]}),
        (501, "framing", {"headers": [(b"transfer-encoding", b"gzip, chunked")]}),
        (501, "framing", {"headers": [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]}),
        (501, "protocol", {"method": "CONNECT"}),
        (400, "framing", {"headers": [(b"content-length", b"0" * 5000)]}),
        (400, "framing", {"headers": [(b"content-length", b"9" * (LENGTH_DIGITS + 1))]}),
        (400, "host", {"hosts": []}),
        (400, "host", {"hosts": [HOST, HOST]}),
        (400, "host", {"hosts": [HOST, HOST], "http_version": "1.0"}),
        (200, None, {"hosts": [], "http_version": "1.0"}),
        (200, None, {"headers": [(b"content-length", b"9" * LENGTH_DIGITS)]}),
        (200, None, {"headers": [(b"a", b"b")] * (HEADERS - 1)}),
        (200, None, {"headers": [(b"a", b"b" * (HEADER_BYTES - 1 - len(b"hosta")))]}),
        (200, None, {"path": "/" + "a" * (URL_BYTES - 1)}),
        (200, None, {"path": "http://host/a"}),
        (200, None, {"headers": [(b"transfer-encoding", b"Chunked")]}),
    ],
)
async def test_what_is_not_shown_to_an_application(status: int, reason: str | None, request_: dict[str, Any]) -> None:
    app = App()
    before = guard(app)
    assert await asked(before, **request_) == status
    assert before.refused == ({} if reason is None else {reason: 1})
    assert len(app.scopes) == (reason is None)


GOOD_HOSTS = (
    b"", b"a", b"a.", b"a:80", b"a:", b":80", b"a-b.example.org:8890", b"a_b", b"1.2.3.4", b"[::1]", b"[::1]:80",
    b"xn--bcher-kva.example", b"a" * 63, b"a%20b", b".".join([b"a" * 63] * 3),
)  # fmt: skip
BAD_HOSTS = (
    b"a..b", b".a", b"a.b..", b".", b"a" * 64, b"a." + b"b" * 64, b"a b", b" ", b"a,b", b"a/b", b"u@b", b"a?b", b"a#b",
    b"[::1", b"::1", b"[]", b"[fe80::1%25eth0]", b"a:x", b"a:123456", b"a:80:80", b"\xe4", b"\xc3\xa4", b"a\x00", b"a\n",
    b".".join([b"a" * 63] * 5),
)  # fmt: skip


@pytest.mark.parametrize("host", GOOD_HOSTS + BAD_HOSTS)
async def test_a_host_is_a_name_or_an_address(host: bytes) -> None:
    assert await asked(guard(), hosts=[(b"host", host)]) == (200 if host in GOOD_HOSTS else 400)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9 , 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["", "\xff"], "10.0.0.1"),
        ("2001:db8::1", ["2001:db8:1::7"], "2001:db8:1::7"),
        ("/run/socket", ["203.0.113.9"], "/run/socket"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9"),
    ],
)
async def test_only_a_trusted_proxy_says_who_asks(peer: str, forwarded: list[str], client: str) -> None:
    app = App()
    before = guard(app, trusted_proxies=["10.0.0.0/8", "2001:db8::1"])
    lines = [(b"x-forwarded-for", line.encode("latin-1")) for line in forwarded]
    assert await asked(before, headers=lines, client=(peer, 5)) == 200
    assert await asked(before, headers=lines, client=None) == 200
    assert [scope["client"] and scope["client"][0] for scope in app.scopes] == [client, None]


async def test_nobody_is_trusted_unless_it_is_said() -> None:
    app = App()
    await asked(guard(app), headers=[(b"x-forwarded-for", b"203.0.113.9")])
    assert app.scopes[0]["client"] == ("192.0.2.1", 5)


def test_a_proxy_that_is_no_address_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    overrides = ["receivers.http.trusted_proxies=[10.0.0.0/8, proxy]"]
    with pytest.raises(ConfigError, match=r"receivers\.http\.trusted_proxies\[1\]"):
        load_configuration(["development"], overrides, environment(tmp_path), load_registry(installed=False))
    environ = environment(tmp_path, METRICS_TRUSTED_PROXIES="10.0.0.0/8,proxy")
    with pytest.raises(
        ConfigError, match=r"receivers\.http\.trusted_proxies: .*'10\.0\.0\.0/8,proxy' \(from METRICS_TR"
    ):
        load_configuration(["development"], [], environ, load_registry(installed=False))


NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "possible"),
    [
        (1024, 4096, 4096),
        (1024, NO_LIMIT, 65_536),
        (1024, 1_000_000, 65_536),
        (100_000, NO_LIMIT, 100_000),
        (NO_LIMIT, NO_LIMIT, 65_536),
    ],
)
def test_as_many_files_are_asked_for_as_may_be_open(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, possible: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: limits.append(to))
    assert files_for_connections() == possible - RESERVED_FILES
    assert limits[-1] in ((possible, hard), (soft, hard))


async def test_listeners_share_what_files_the_process_may_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000 + RESERVED_FILES, 1000 + RESERVED_FILES))
    scraped = "exporters.prometheus.max_connections=1000"
    async with running(tmp_path, "receivers.http.max_connections=3000", scraped) as service:
        guards = {component.id: one.guard for component, (one,) in service.service.listeners.items()}
        assert {id: each.limit for id, each in guards.items()} == {"http": 750, "prometheus": 250}
        assert await reload(service, "receivers.http.max_connections=1", scraped)
        assert {id: each.limit for id, each in guards.items()} == {"http": 1, "prometheus": 999}
        monkeypatch.undo()
        assert await reload(service, "receivers.http.max_connections=3000", scraped)
        assert {id: each.limit for id, each in guards.items()} == {"http": 3000, "prometheus": 1000}


def test_a_server_without_a_member_that_is_overridden_is_not_imported() -> None:
    assert_members((Guard, "opened closed"))
    with pytest.raises(StartError, match=r"pipeline\.guard\.Guard: no shut, locked \(install"):
        assert_members((Guard, "opened shut locked"))
