"""TLS, other protocols on our port, and headers without an end. On both servers."""

from __future__ import annotations

import logging
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from tests.plugins.receivers.wire import connected, push, request
from tests.programs import need
from tests.running import KEY, running

pytestmark = pytest.mark.anyio

METRIC = {"type": "custom", "value": 1}
UPGRADE = "Connection: Upgrade"


@pytest.fixture(autouse=True)
def _nothing_to_look_into(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do, the log shows no error of ours."""
    yield
    found = [record for record in caplog.get_records("call") if record.exc_info or record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in found] == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for this machine, `cert.pem`, and its key, `key.pem`."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        f"{need('openssl')} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


async def test_pushes_over_tls(tmp_path: Path, server: str, certificate: Path) -> None:
    tls = [f"receivers.http.tls.certificate={certificate}/cert.pem", f"receivers.http.tls.key={certificate}/key.pem"]
    async with running(tmp_path, server, *tls) as service:
        trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        async with httpx.AsyncClient(base_url=service.client.base_url, verify=trusting) as client:
            for _ in range(3):
                answer = await client.post(
                    "/metrics", json={"service": "test", "metrics": [METRIC]}, headers={"X-API-Key": KEY}
                )
                assert answer.status_code == 200
        # Whoever does not speak TLS gets nothing, and whoever does not trust the certificate finds out.
        async with connected(service.port) as wire:
            await wire.send(push())
            assert b"HTTP" not in await wire.rest()
        async with httpx.AsyncClient(base_url=service.client.base_url) as client:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await client.get("/health")
        await service.flush()
        assert service.rows() == [(3,)]


@pytest.mark.parametrize(
    "data",
    [
        request("GET /metrics HTTP/1.1", UPGRADE, "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        request("GET /health HTTP/1.1", f"{UPGRADE}, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
        request("GET /health HTTP/1.1", f"{UPGRADE}, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: !"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame at all, but long enough to be one",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nBad Name: 1\r\n\r\n",
        b"CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x00" * 100,
    ],
    ids=["websocket", "h2c", "h2c-bad", "h2", "h2-bad", "tls", "empty", "short", "9.9", "name", "connect", "options", "zeros"],
)  # fmt: skip
async def test_another_protocol_hurts_nobody(tmp_path: Path, server: str, data: bytes) -> None:
    async with running(tmp_path, server) as service:
        async with connected(service.port) as wire, connected(service.port) as other:
            await wire.send(data)
            await other.send(push())
            assert (await other.answer()).status == 200
            await wire.end()
            assert b" 500 " not in await wire.rest()
        assert (await service.push(METRIC)).status_code == 200


async def test_a_websocket_is_refused(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service, connected(service.port) as wire:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        await wire.send(
            request("GET /metrics HTTP/1.1", UPGRADE, "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
        )
        assert 400 <= (await wire.answer()).status < 500


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /met", request("POST /metrics HTTP/1.1")[:-2], push() + b"POST /metrics HTTP/1.1\r\nA: b"],
    ids=["nothing", "line", "header", "second"],
)
async def test_a_header_that_does_not_end_closes_the_connection(
    tmp_path: Path, server: str, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("hypercorn", "uvicorn"):
        monkeypatch.setattr(f"pipeline.serving_{module}.IDLE_SECONDS", 0.3)
    async with running(tmp_path, server) as service, connected(service.port) as wire:
        await wire.send(start)
        with anyio.fail_after(5):
            if start.startswith(push()):
                assert (await wire.answer()).status == 200
            assert await wire.rest() == b""


async def test_a_header_without_measure_is_refused(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        for start in (b"GET /health HTTP/1.1\r\nHost: a\r\nX: ", b"GET /" + b"a" * 200_000, b"X: y\r\n" * 50_000):
            async with connected(service.port) as wire:
                try:
                    await wire.send(start)
                    for _ in range(1000):
                        await wire.send(b"x" * 10_000)
                except anyio.BrokenResourceError:
                    pass  # it has been closed
                else:
                    pytest.fail("10 MB of header were taken")
        assert (await service.push(METRIC)).status_code == 200
