"""TLS to a collector: whom we trust, who we are, and what is said when that does not fit."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from pipeline import Blocked, StartError
from pipeline.testing import metric_batch
from tests.collector import Collector, grpc_collector, http_collector
from tests.plugins.exporters.otlp.certificates import Authority
from tests.plugins.exporters.otlp.forwarding import exporter_for, forwarding, taken
from tests.running import command

pytestmark = pytest.mark.anyio

VALUES = [1.0, 2.0]
BOTH = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(Blocked, "PROBE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that signs for the tests of this file."""
    found = Authority(tmp_path_factory.mktemp("tls") / "one")
    found.sign("server")
    found.sign("client", "DNS:client")
    found.sign("expired", days=-1)
    found.sign("elsewhere", "DNS:elsewhere.example.com")
    return found


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that nobody trusts."""
    found = Authority(tmp_path_factory.mktemp("tls") / "other")
    found.sign("client", "DNS:client")
    return found


@asynccontextmanager
async def collecting(
    protocol: str, authority: Authority, name: str = "server", *, asks: bool = False
) -> AsyncIterator[Collector]:
    """A collector with that certificate, which may ask for one of ours."""
    certificate, key = authority.folder / f"{name}.pem", authority.folder / f"{name}.key"
    if protocol == "grpc":
        pair = (key.read_bytes(), certificate.read_bytes())
        roots = authority.ca.read_bytes() if asks else None
        async with grpc_collector(credentials=grpc.ssl_server_credentials([pair], roots, asks)) as found:
            yield found
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authority.ca)
        async with http_collector(tls=context) as found:
            yield found


def trusting(authority: Authority, client: Authority | None = None) -> dict[str, Any]:
    """The options of one that trusts this authority, and has a certificate of that one."""
    own = {} if client is None else {which: client.folder / f"client.{end}" for which, end in PAIR.items()}
    return {"tls": {"ca": authority.ca, **own}}


PAIR = {"certificate": "pem", "key": "key"}


@BOTH
async def test_one_that_is_trusted(protocol: str, authority: Authority, tmp_path: Path) -> None:
    async with (
        collecting(protocol, authority) as collector,
        forwarding(tmp_path, endpoint=collector.url, protocol=protocol, **trusting(authority)) as found,
    ):
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert taken(collector) == Counter(VALUES)


@BOTH
async def test_one_that_the_system_trusts(
    protocol: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    async with (
        collecting(protocol, authority) as collector,
        forwarding(tmp_path, endpoint=collector.url, protocol=protocol) as found,
    ):
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert taken(collector) == Counter(VALUES)


@BOTH
@pytest.mark.parametrize("name", ["server", "expired", "elsewhere"], ids=["untrusted", "expired", "another name"])
async def test_one_that_is_not_what_it_should_be_is_sent_nothing(
    protocol: str, name: str, authority: Authority, other: Authority, tmp_path: Path
) -> None:
    trusted = other if name == "server" else authority
    options = {**trusting(trusted), "headers": {"Authorization": "Bearer hush"}}
    async with (
        collecting(protocol, authority, name) as collector,
        forwarding(tmp_path, endpoint=collector.url, protocol=protocol, **options) as found,
    ):
        await found.put(metric_batch(*VALUES))
        await found.failed(2)
        assert (found.blocked, found.worker.position, collector.requests) == ("certificate", 0, 0)
        assert (found.worker.failure or "").startswith("certificate: ")
        assert found.counted("otlp_ambiguous_requests_total") == 0


@BOTH
async def test_one_that_asks_who_we_are(protocol: str, authority: Authority, tmp_path: Path) -> None:
    async with (
        collecting(protocol, authority, asks=True) as collector,
        forwarding(tmp_path, endpoint=collector.url, protocol=protocol, **trusting(authority, authority)) as found,
    ):
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert taken(collector) == Counter(VALUES)


@BOTH
@pytest.mark.parametrize("which", ["none", "of another authority"])
async def test_one_that_asks_who_we_are_and_does_not_like_the_answer(
    protocol: str, which: str, authority: Authority, other: Authority, tmp_path: Path
) -> None:
    ours = trusting(authority, None if which == "none" else other)
    async with (
        collecting(protocol, authority, asks=True) as collector,
        forwarding(tmp_path, endpoint=collector.url, protocol=protocol, **ours) as found,
    ):
        await found.put(metric_batch(*VALUES))
        await found.failed(2)
        # Neither of these two says why it hangs up, so this is not held but tried again.
        assert (found.worker.position, collector.requests, found.dead_letters()) == (0, 0, [])


@BOTH
async def test_one_that_asks_who_we_are_and_says_that_it_does_not_like_the_answer(
    protocol: str, authority: Authority, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    context.load_cert_chain(authority.folder / "server.pem", authority.folder / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2", "http/1.1"])
    with refusing(context) as port:
        options = {"endpoint": f"https://127.0.0.1:{port}", "protocol": protocol, **trusting(authority)}
        async with forwarding(tmp_path, **options) as found:
            await found.put(metric_batch(*VALUES))
            await found.failed(2)
            assert found.worker.position == 0
            assert found.blocked == "certificate", found.worker.failure


@contextmanager
def refusing(context: ssl.SSLContext) -> Iterator[int]:
    """A port where handshakes fail, with the alert that says why: asyncio's servers, and gRPC's, hang up without."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                    with suppress(OSError), wrapped:
                        with suppress(ssl.SSLError):
                            wrapped.do_handshake()
                        wrapped.shutdown(socket.SHUT_WR)
                        while wrapped.recv(2**16):  # lest what comes be answered with RST, which may overtake the alert
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@BOTH
async def test_a_port_without_tls(protocol: str, authority: Authority, tmp_path: Path) -> None:
    plain = http_collector() if protocol == "http/protobuf" else grpc_collector()
    async with plain as collector:
        endpoint = collector.url.replace("http:", "https:")
        async with forwarding(tmp_path, endpoint=endpoint, protocol=protocol, **trusting(authority)) as found:
            await found.put(metric_batch(*VALUES))
            await found.failed(2)
            assert (found.worker.position, collector.requests) == (0, 0)
            assert found.blocked == "certificate", found.worker.failure


@BOTH
async def test_a_port_with_tls_for_an_address_without(protocol: str, authority: Authority, tmp_path: Path) -> None:
    async with collecting(protocol, authority) as collector:
        endpoint = collector.url.replace("https:", "http:")
        async with forwarding(tmp_path, endpoint=endpoint, protocol=protocol, timeout=1) as found:
            await found.put(metric_batch(*VALUES))
            await found.failed(2)
            assert (found.worker.position, collector.requests, found.dead_letters()) == (0, 0, [])


def spoiled(folder: Path, authority: Authority, how: str) -> dict[str, Path]:
    """Options of `tls` that cannot be used."""
    pair = {which: authority.folder / f"client.{end}" for which, end in PAIR.items()}
    (folder / "empty.pem").write_bytes(b"")
    (folder / "rubbish.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n")
    words = f"openssl ec -in {pair['key']} -out {folder}/locked.key -aes256 -passout pass:hush"
    subprocess.run(words.split(), check=True, capture_output=True)
    return {
        "a missing ca": {"ca": folder / "missing.pem"},
        "a folder as ca": {"ca": folder},
        "an empty ca": {"ca": folder / "empty.pem"},
        "a damaged ca": {"ca": folder / "rubbish.pem"},
        "a missing certificate": {**pair, "certificate": folder / "missing.pem"},
        "a missing key": {**pair, "key": folder / "missing.key"},
        "a certificate as key": {**pair, "key": pair["certificate"]},
        "another's key": {**pair, "key": authority.folder / "server.key"},
        "a key with a password": {**pair, "key": folder / "locked.key"},
    }[how]


@BOTH
@pytest.mark.parametrize(
    "how",
    [
        "a missing ca", "a folder as ca", "an empty ca", "a damaged ca", "a missing certificate", "a missing key",
        "a certificate as key", "another's key", "a key with a password",
    ],
)  # fmt: skip
async def test_files_that_cannot_be_used_prevent_the_start(
    protocol: str, how: str, authority: Authority, tmp_path: Path
) -> None:
    files = spoiled(tmp_path, authority, how)
    exporter = exporter_for(endpoint="https://127.0.0.1:1", protocol=protocol, tls=files)
    with pytest.raises(StartError) as raised:
        await exporter.start()
    await exporter.stop()
    assert raised.value.exit_code == 78
    line = str(raised.value)
    assert line.isprintable()
    assert all(str(path) in line for which, path in files.items())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_that_is_not_ours_to_read(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch(mode=0)
    called, environ = command(tmp_path, OTEL_EXPORTER_OTLP_CERTIFICATE=str(tmp_path / "ca.pem"))
    assert subprocess.run(called, env=environ, capture_output=True, check=False).returncode == 78


def test_the_service_says_so_on_one_line_and_ends_with_78(tmp_path: Path) -> None:
    called, environ = command(
        tmp_path,
        METRICS_SERVICE_PORT="0",
        OTEL_OTLP_ENDPOINT="https://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_CERTIFICATE=str(tmp_path / "missing.pem"),
    )
    ended = subprocess.run(called, env=environ, capture_output=True, check=False, text=True, timeout=30)
    assert ended.returncode == 78
    said = [line for line in ended.stderr.splitlines() if "missing.pem" in line]
    assert len(said) == 1
    assert "cannot use" in said[0]
    assert "Traceback" not in ended.stderr
