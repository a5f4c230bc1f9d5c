"""What a stranger learns and gets from either port, on both servers: no old TLS, no compression, no versions."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from pathlib import Path

import anyio
import httpx
import pytest

from tests.plugins.exporters.otlp.certificates import Authority
from tests.running import running

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])


def shake_hands(port: int, version: ssl.TLSVersion) -> tuple[str | None, str | None]:
    """The version and the compression that a client gets which speaks that version alone, however weak."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = context.minimum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.options &= ~ssl.OP_NO_COMPRESSION
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain) as secure:
        return secure.version(), secure.compression()


@BOTH
async def test_tls_is_1_2_at_least_and_compresses_nothing(tmp_path: Path, server: str) -> None:
    certificate, key = Authority(tmp_path / "tls").sign("localhost")
    settings = [
        f"{each}.{option}"
        for each in ("receivers.http", "exporters.prometheus")
        for option in (f"server={server}", f"tls.certificate={certificate}", f"tls.key={key}")
    ]
    async with running(tmp_path, *settings) as service:
        for port in (service.port, httpx.URL(service.scraped).port):
            assert port is not None
            for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
                assert await anyio.to_thread.run_sync(shake_hands, port, version) == (name, None)
            with pytest.raises(ssl.SSLError):  # asyncio hangs up, without the alert
                await anyio.to_thread.run_sync(shake_hands, port, ssl.TLSVersion.TLSv1_1)


async def test_a_server_that_takes_tls_1_1_is_found(tmp_path: Path) -> None:
    """The negative control: the client of these tests can speak it."""
    certificate, key = Authority(tmp_path / "tls").sign("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")

    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await anyio.to_thread.run_sync(shake_hands, port, ssl.TLSVersion.TLSv1_1)
    assert found == ("TLSv1.1", None)


@BOTH
async def test_no_answer_says_what_serves_it(tmp_path: Path, server: str) -> None:
    names = [f"{each}.server={server}" for each in ("receivers.http", "exporters.prometheus")]
    async with running(tmp_path, *names) as service:
        port = service.scraped.removesuffix("/metrics")
        answers = [
            await service.client.get("/health"),
            await service.client.get("/no-such-page"),
            await service.client.post("/metrics", content=b"{"),
            await service.client.get(service.scraped),
            await service.client.get(f"{port}/no-such-page"),
        ]
    for answer in answers:
        assert {"server", "x-powered-by"}.isdisjoint(answer.headers), answer.url
        assert not any(name in str(answer.headers).lower() for name in ("hypercorn", "uvicorn", "quart", "python"))


async def test_the_page_for_people_loads_and_runs_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        page = await service.client.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert (page.headers["X-Content-Type-Options"], page.headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert not any(sign in page.text for sign in ("<script", "src=", "javascript:", "@import", "url("))
