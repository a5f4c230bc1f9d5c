"""The way out through an HTTP proxy: by the configuration, by the environment, and what is said when it does not let us."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline import Blocked, StartError
from pipeline.testing import metric_batch
from plugins.exporters.otlp.config import OtlpConfig
from plugins.exporters.otlp.proxy import proxy_for
from tests.collector import grpc_collector, http_collector
from tests.plugins.exporters.otlp.certificates import Authority
from tests.plugins.exporters.otlp.forwarding import Port, exporter_for, forwarding, listening, taken
from tests.plugins.exporters.otlp.test_tls import collecting

pytestmark = pytest.mark.anyio

VALUES = [1.0, 2.0]
HEAD_END = b"\r\n\r\n"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(Blocked, "PROBE_SECONDS", 0.01)


@dataclass
class Proxy:
    """An HTTP proxy. `asked` holds the first lines that it was sent, and `heads` all of that; `refuses` is what it answers instead."""

    port: Port = field(default_factory=Port)
    asked: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    refuses: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.port.address}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(HEAD_END)).decode()
        self.heads.append(head)
        self.asked.append(head.partition("\r\n")[0])
        if self.refuses:
            writer.write(f"HTTP/1.1 {self.refuses}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return
        method, target, _ = self.asked[-1].split()
        address = target if method == "CONNECT" else urlsplit(target).netloc
        there, back = await asyncio.open_connection(*address.split(":"))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            back.write(head.replace(f"http://{address}", "", 1).encode())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pass_on(reader, back))
                tasks.create_task(_pass_on(there, writer))
        finally:
            back.close()


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(2**16):
        target.write(data)
    target.close()


@asynccontextmanager
async def proxying() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    async with listening(proxy.serve) as proxy.port:
        yield proxy


@pytest.mark.parametrize("how", ["configured", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_without_tls(protocol: str, how: str, tmp_path: Path) -> None:
    stand_in = http_collector() if protocol == "http/protobuf" else grpc_collector()
    async with stand_in as collector, proxying() as proxy:
        options: dict[str, Any] = {"endpoint": collector.url, "protocol": protocol}
        if how == "configured":
            options["proxy"] = proxy.url
        else:
            options["environ"] = {how: proxy.url}
        async with forwarding(tmp_path, **options) as found:
            await found.put(metric_batch(*VALUES))
            await found.done()
        assert taken(collector) == Counter(VALUES)
        address = collector.url.removeprefix("http://")
        asked = f"POST {collector.url}/v1/metrics" if protocol == "http/protobuf" else f"CONNECT {address}"
        assert proxy.asked == [f"{asked} HTTP/1.1"]


@pytest.mark.parametrize("how", ["configured", "HTTPS_PROXY"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_with_tls_it_sees_nothing_but_the_address(protocol: str, how: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    authority.sign("server")
    async with collecting(protocol, authority) as collector, proxying() as proxy:
        options: dict[str, Any] = {"endpoint": collector.url, "protocol": protocol, "tls": {"ca": authority.ca}}
        options["headers"] = {"X-Secret": "hush-hush"}
        url = f"http://me:pass@{proxy.port.address}"
        if how == "configured":
            options["proxy"] = url
        else:
            options["environ"] = {how: url}
        async with forwarding(tmp_path, **options) as found:
            await found.put(metric_batch(*VALUES))
            await found.done()
        assert taken(collector) == Counter(VALUES)
        assert proxy.asked == [f"CONNECT {collector.url.removeprefix('https://')} HTTP/1.1"]
        assert "hush-hush" not in proxy.heads[0]
        assert f"authorization: basic {b64encode(b'me:pass').decode()}".lower() in proxy.heads[0].lower()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_what_no_proxy_names_goes_directly(protocol: str, tmp_path: Path) -> None:
    stand_in = http_collector() if protocol == "http/protobuf" else grpc_collector()
    async with stand_in as collector, proxying() as proxy:
        environ = {"HTTP_PROXY": proxy.url, "NO_PROXY": "example.com,127.0.0.1"}
        async with forwarding(tmp_path, environ=environ, endpoint=collector.url, protocol=protocol) as found:
            await found.put(metric_batch(*VALUES))
            await found.done()
        assert taken(collector) == Counter(VALUES)
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("refuses", "blocked"),
    [
        ("407 Proxy Authentication Required", "proxy"),
        ("403 Forbidden", "proxy"),
        ("400 Bad Request", "proxy"),
        ("404 Not Found", "proxy"),
        ("500 Internal Server Error", None),
        ("502 Bad Gateway", None),
        ("503 Service Unavailable", None),
    ],
)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_one_that_does_not_connect_us_makes_no_dead_letters(
    protocol: str, refuses: str, blocked: str | None, tmp_path: Path
) -> None:
    async with proxying() as proxy:
        proxy.refuses = refuses
        options: dict[str, Any] = {"proxy": proxy.url, "on_auth_error": "dead_letter", "protocol": protocol}
        async with forwarding(tmp_path, endpoint="https://collector.invalid:4318", **options) as found:
            await found.put(metric_batch(*VALUES))
            await found.failed(2)
            assert (found.worker.position, found.dead_letters()) == (0, [])
            assert found.blocked == blocked, found.worker.failure
            assert refuses[:3] in (found.worker.failure or "")
            assert found.counted("otlp_ambiguous_requests_total") == 0


async def test_407_without_tls(tmp_path: Path) -> None:
    async with proxying() as proxy:
        proxy.refuses = "407 Proxy Authentication Required"
        async with forwarding(tmp_path, endpoint="http://collector.invalid", proxy=proxy.url) as found:
            await found.put(metric_batch(*VALUES))
            await found.failed(2)
            assert (found.worker.position, found.blocked) == (0, "proxy")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_one_that_is_not_there(protocol: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"proxy": "http://me:hush-hush@127.0.0.1:1", "protocol": protocol}
    async with forwarding(tmp_path, endpoint="http://collector.invalid", **options) as found:
        await found.put(metric_batch(*VALUES))
        await found.failed(2)
        assert (found.worker.position, found.blocked) == (0, None)
        assert "hush-hush" not in (found.worker.failure or "")
        assert found.counted("otlp_ambiguous_requests_total") == 0


@pytest.mark.parametrize(
    ("endpoint", "environ", "proxy"),
    [
        ("http://c", {}, None),
        ("http://c", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("http://c", {"HTTPS_PROXY": "http://p:1"}, None),
        ("https://c", {"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:1"}, "http://q:1"),
        ("https://c", {"HTTPS_PROXY": "http://p:1", "https_proxy": ""}, "http://p:1"),
        ("https://c", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("https://c", {"HTTPS_PROXY": "p:1", "NO_PROXY": "*"}, None),
        ("https://c.example.com:1", {"HTTPS_PROXY": "p:1", "NO_PROXY": "example.com"}, None),
        ("https://c.example.com:1", {"HTTPS_PROXY": "p:1", "NO_PROXY": ".example.com"}, None),
        ("https://c.example.com:1", {"HTTPS_PROXY": "p:1", "NO_PROXY": "c.example.com:1"}, None),
        ("https://c.example.com:1", {"HTTPS_PROXY": "p:1", "NO_PROXY": "c.example.com:2"}, "http://p:1"),
        ("https://badexample.com", {"HTTPS_PROXY": "p:1", "NO_PROXY": "example.com"}, "http://p:1"),
        ("http://[::1]:1", {"HTTP_PROXY": "p:1", "NO_PROXY": "::1"}, None),
    ],
)
def test_which_one(endpoint: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(OtlpConfig(endpoint=endpoint), environ) == proxy
    own = OtlpConfig.model_validate({"endpoint": endpoint, "proxy": "http://own:1"})
    assert proxy_for(own, environ) == "http://own:1"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_variable_that_names_none_prevents_the_start(protocol: str) -> None:
    environ = {"HTTPS_PROXY": "socks5://me:hush-hush@proxy:1080"}
    exporter = exporter_for(environ=environ, endpoint="https://collector", protocol=protocol)
    with pytest.raises(StartError, match="HTTPS_PROXY is no URL of an HTTP proxy") as raised:
        await exporter.start()
    await exporter.stop()
    assert raised.value.exit_code == 78
    assert "hush-hush" not in str(raised.value)


async def test_a_password_of_netrc_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login me password hush-hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with http_collector() as collector:
        for number, headers in enumerate(({}, {"Authorization": "Bearer mine"})):
            folder = tmp_path / str(number)
            folder.mkdir()
            async with forwarding(folder, endpoint=collector.url, headers=headers) as found:
                await found.put(metric_batch(*VALUES))
                await found.done()
        assert [each.get("Authorization") for each in collector.headers] == [None, "Bearer mine"]
