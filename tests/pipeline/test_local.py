"""How a command reaches the service on its machine."""

from __future__ import annotations

import socket
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline import ListenerConfig, TLSConfig, fetch_local, local_url


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - not bound
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.7", "10.0.0.7"),
        ("localhost", "localhost"),
    ],
)
def test_a_listener_on_all_addresses_is_asked_on_loopback(host: str, asked: str) -> None:
    assert local_url(ListenerConfig(host=host, port=80), "/health") == f"http://{asked}:80/health"


def test_a_listener_with_a_certificate_is_asked_by_https() -> None:
    tls = TLSConfig.model_validate({"certificate": "c.pem", "key": "k.pem"})
    assert local_url(ListenerConfig(host="localhost", port=1, tls=tls), "/") == "https://localhost:1/"


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Somebody who answers one connection with these bytes; yields its URL, and what it was asked once it has been."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield local_url(ListenerConfig(host="127.0.0.1", port=server.getsockname()[1]), "/x"), asked
        thread.join()


def test_it_is_asked_with_the_headers_and_past_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xe2\x82\xac") as (url, asked):
        assert fetch_local(url, 10, {"X-API-Key": "k"}) == "€"
    assert asked[0].startswith(b"GET /x HTTP/1.1\r\n")
    assert b"x-api-key: k\r\n" in asked[0].lower()


def test_a_bad_status_is_told() -> None:
    with (
        answering(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n") as (url, _),
        pytest.raises(urllib.error.HTTPError, match="503"),
    ):
        fetch_local(url, 10)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff"])
def test_what_is_no_http_or_no_text_is_an_os_error(answer: bytes) -> None:
    with answering(answer) as (url, _), pytest.raises(OSError, match=r"no HTTP or no text|closed"):
        fetch_local(url, 10)


@pytest.mark.parametrize("key", ["s3cret\n", "s3cret-\u20ac"])
def test_a_key_that_no_header_can_hold_is_not_shown(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = local_url(ListenerConfig(host="127.0.0.1", port=server.getsockname()[1]), "/x")
        with pytest.raises(OSError, match="no HTTP") as raised:
            fetch_local(url, 10, {"X-API-Key": key})
    assert "s3cret" not in str(raised.value)
