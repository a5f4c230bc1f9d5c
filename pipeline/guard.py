"""What stands before every application on a listening socket, whichever server reads it.

Connections are counted by address (IPv6 by network), requests must be readable in one way only, headers are bounded, and what is left
of a body is thrown away behind the answer. docs/security.md has the table of all limits.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio

from pipeline.addresses import network_of, parse_address
from pipeline.component import ASGIApp, Component
from pipeline.config.fields import ListenerConfig
from pipeline.discarding import Discarding
from pipeline.errors import StartError
from pipeline.telemetry import Instrument, InstrumentKind, Reading

if TYPE_CHECKING:
    from pipeline.serving import Listener

IDLE_SECONDS = 5
"""How long a connection may take to send the header of a request, the first or the next."""
HEADER_BYTES = 16 * 1024
"""How large that header may be, without its first line."""
HEADERS = 100
"""How many lines it may have."""
URL_BYTES = 8 * 1024
"""How long a path with its query may be."""
HOST_BYTES = 262
"""The longest `Host`, in bytes: a DNS name, a dot, a colon and a port."""
LENGTH_DIGITS = 19
"""The most digits of `Content-Length`. Python reads at most 4,300."""
UNREAD_SECONDS = 10
"""How long a connection may take none of what is sent to it before it is cut off; both servers would wait for ever."""
LINGER_SECONDS = 5
"""How long what a client still sends is read and thrown away after it was answered."""
TIMEOUT = 408
"""The status of a request whose body has been waited for already: it lingers for a second only."""
FILES = 65_536
"""How many open files the operating system is asked for."""
RESERVED_FILES = 200
"""How many open files of the process are not for connections: databases, logs, connections to collectors."""
SKIPPED_BYTES = 64 * 1024
"""The longest unread rest of a body that is parsed, in bytes, so that the connection can serve another request."""
CHUNKS = 32_768
"""The most chunks of a body."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
"""What a connection too many is answered, before it is closed."""


class Guard:
    """What stands before one application on one socket. An ASGI application itself; servers also tell it of connections."""

    def __init__(self, config: ListenerConfig, app: ASGIApp) -> None:
        self.refused: dict[str, int] = {}
        """Connections and requests that the application never heard of, by reason."""
        self.connections = 0
        self.closing = False
        """Whether every answer is the last of its connection."""
        self.discarding = Discarding()
        """Connections that are read only so that their clients see the last answer."""
        self._of_network: dict[str, int] = {}
        self._app = app
        self.configure(config)

    def configure(self, config: ListenerConfig) -> None:
        """Hold connections and requests to these settings from now on."""
        self.limit = config.max_connections
        """How many connections may be open at once."""
        self._limit_of_address = config.max_connections_per_address
        networks = config.trusted_proxies
        self._has_proxies = bool(networks)

        @lru_cache(maxsize=1024)
        def is_proxy(address: str) -> bool:
            try:
                shown, real = ip_address(address), parse_address(address)  # either is what somebody may have written
                return any(shown in network or real in network for network in networks)
            except ValueError:
                return False

        self._is_proxy = is_proxy

    def count(self, reason: str) -> None:
        """Count a connection or a request that is refused or cut off."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def opened(self, address: str) -> bool:
        """Whether a new connection from there may stay; if it may, `closed` is told when it has gone."""
        network = network_of(address)
        of_network = self._of_network.get(network, 0)
        if self.connections >= self.limit:
            self.count("connections")
            return False
        if of_network >= self._limit_of_address and not (self._has_proxies and self._is_proxy(address)):
            self.count("connections_of_address")
            return False
        self.connections += 1
        self._of_network[network] = of_network + 1
        return True

    def closed(self, address: str) -> None:
        """A connection that may stay has gone."""
        self.connections -= 1
        network = network_of(address)
        left = self._of_network[network] - 1
        if left:
            self._of_network[network] = left
        else:
            del self._of_network[network]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            self.count("protocol")
            await receive()
            await send({"type": "websocket.close", "code": 1003})
            return
        fault = _fault(scope)
        if fault is None:
            if self._has_proxies:
                self._find_client(scope)
            await _served(self, self._app, scope, receive, send)
        else:
            status, reason, message = fault
            self.count(reason)
            await _refuse(status, message, send)

    def _find_client(self, scope: Any) -> None:
        """Behind proxies, the client is the last in X-Forwarded-For that is none of them; what comes before may be made up."""
        if scope["client"] is None or not self._is_proxy(scope["client"][0]):
            return
        lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for address in reversed([part.strip() for part in ",".join(lines).split(",")]):
            try:
                scope["client"] = (str(parse_address(address)), 0)
            except ValueError:
                return
            if not self._is_proxy(address):
                return


Fault = tuple[int, str, bytes]
"""The status, what it is counted as, and what is said."""


def _fault(scope: Any) -> Fault | None:
    """Why a request is not even shown to the application, or None. Makes an absolute target (RFC 9112, section 3.2.2) its path."""
    if len(scope["headers"]) > HEADERS:
        return 431, "header", b"more than %d header lines" % HEADERS
    if len(scope["raw_path"]) + len(scope["query_string"]) > URL_BYTES:
        return 414, "url", b"URL longer than %d bytes" % URL_BYTES
    version = scope["http_version"]
    if version not in ("1.1", "1.0"):
        return 400, "protocol", b"not HTTP/1.1"
    if scope["method"] == "CONNECT":  # a server that answers it with 200 reads no more HTTP on that connection
        return 501, "protocol", b"CONNECT is not supported"
    fault = _header_fault(scope["headers"], version)
    if fault is None and not scope["path"].startswith("/"):
        return _target_fault(scope)
    return fault


def _header_fault(headers: Sequence[tuple[bytes, bytes]], version: str) -> Fault | None:
    size, hosts, is_coded = 0, [], False
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            is_coded = True
        elif name == b"content-length" and len(value) > LENGTH_DIGITS:
            return 400, "framing", b"Content-Length has more than %d digits" % LENGTH_DIGITS
    if size > HEADER_BYTES:
        return 431, "header", b"header larger than %d bytes" % HEADER_BYTES
    if len(hosts) != 1 and (hosts or version == "1.1"):
        return 400, "host", b"exactly one Host is needed"
    if hosts and not _is_host(hosts[0]):
        return 400, "host", b"Host is not a name or an address"
    return _framing_fault(headers) if is_coded else None


def _target_fault(scope: Any) -> Fault | None:
    try:
        scope["path"] = urlsplit(scope["path"]).path or "/"
    except ValueError:
        scope["path"] = ""
    return None if scope["path"].startswith("/") else (400, "url", b"the target is not a URL")


_LABEL = rb"[A-Za-z0-9_~!$&'()*+;=%-]{1,63}"
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:%b(?:\.%b)*\.?)?)(?::[0-9]{0,5})?" % (_LABEL, _LABEL))


@lru_cache(maxsize=64)
def _is_host(value: bytes) -> bool:
    """Whether this is a `Host` of RFC 9110, section 7.2, and a name that DNS could hold: libraries raise at a label of another length."""
    return len(value) <= HOST_BYTES and _HOST.fullmatch(value) is not None


def _framing_fault(headers: Sequence[tuple[bytes, bytes]]) -> Fault | None:
    """Framing that two parties may read in two ways: the second request in it would be smuggled past one of them."""
    if any(name == b"content-length" for name, _ in headers):
        return 400, "framing", b"both Content-Length and Transfer-Encoding"
    if [value.lower() for name, value in headers if name == b"transfer-encoding"] != [b"chunked"]:
        return 501, "framing", b"Transfer-Encoding must be chunked"
    return None


async def _served(guard: Guard, app: ASGIApp, scope: Any, receive: Any, send: Any) -> None:
    """Serve one request. What the application has not read of its body is thrown away, for a while, behind the answer.

    A client that is still sending when its connection is closed never sees the answer: the reset that its data causes comes
    first. And Hypercorn ends a request by way of the bounded queue that chunks of the body wait in, so that with nobody who
    takes them out, the connection would stay for ever.
    """
    complete = asyncio.Event()
    seconds: float = LINGER_SECONDS
    is_answered = False

    async def receiving() -> Any:
        message = await receive()
        if not message.get("more_body", False):
            complete.set()
        return message

    async def discard() -> None:
        while not complete.is_set():
            await receiving()

    async def sending(message: Any) -> None:
        nonlocal seconds, is_answered
        if message["type"] == "http.response.start":
            message = _begun(guard, scope, message, is_unread=not complete.is_set())
        if complete.is_set() or message.get("more_body", False):
            await send(message)
        elif message["type"] == "http.response.start":
            seconds = 1 if message["status"] == TIMEOUT else LINGER_SECONDS
            await send(message)
        else:
            await send({**message, "more_body": True})
            is_answered = True

    await app(scope, receiving, sending)
    if is_answered:
        discarding = asyncio.ensure_future(discard())
        try:
            with anyio.move_on_after(seconds):
                await complete.wait()
            await send({"type": "http.response.body"})
        finally:
            discarding.cancel()


def _begun(guard: Guard, scope: Any, start: dict[str, Any], *, is_unread: bool) -> dict[str, Any]:
    """The beginning of an answer. It is the last one of its connection if the rest of the body may be long.

    That rest is not parsed: chunks of a byte each cost far more to parse than to send. The server's `scope["discard"]` discards it.
    """
    if is_unread and _is_long(scope["headers"]):
        if "discard" in scope:
            scope["discard"]()
    elif not guard.closing:
        return start
    return _last_of_its_connection(start)


def _is_long(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the body may be longer than `SKIPPED_BYTES`."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and int(value) > SKIPPED_BYTES)
        for name, value in headers
    )


def _last_of_its_connection(start: dict[str, Any]) -> dict[str, Any]:
    """The same, with `Connection: close`: so a client knows that its next request needs another connection, rather than finding this
    one closed while it sends."""
    others = [header for header in start.get("headers", ()) if header[0].lower() != b"connection"]
    return {**start, "headers": [*others, (b"connection", b"close")]}


async def _refuse(status: int, message: bytes, send: Any) -> None:
    length = b"%d" % len(message)
    headers = [(b"content-type", b"text/plain"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": message})


def assert_members(*owners: tuple[type, str]) -> None:
    """Raise `StartError` if a server's class lacks a member that we override. The names are separated by spaces.

    An override that is no longer called would silently switch off a limit.
    """
    for owner, names in owners:
        missing = [name for name in names.split() if not hasattr(owner, name)]
        if missing:
            name = f"{owner.__module__}.{owner.__qualname__}"
            raise StartError(f"{name}: no {', '.join(missing)} (install the locked versions)", 78)


def files_for_connections() -> int:
    """How many connections the operating system lets this process have open, after it was asked for all that it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, possible = (FILES if each == resource.RLIM_INFINITY else each for each in (soft, hard))
    if soft < min(FILES, possible):
        soft = min(FILES, possible)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft - RESERVED_FILES


def guard_instruments(listeners: Mapping[Component[Any], Iterable[Listener]]) -> list[Instrument]:
    """What the guards before all listeners have to say."""

    def connections() -> Iterable[Reading]:
        for component, listening in listeners.items():
            value = sum(each.guard.connections for each in listening)
            yield {"component": f"{component.kind}/{component.id}"}, value

    def refused() -> Iterable[Reading]:
        for component, listening in listeners.items():
            for each in listening:
                for reason, count in each.guard.refused.items():
                    yield {"component": f"{component.kind}/{component.id}", "reason": reason}, count

    gauge, counter = InstrumentKind.GAUGE, InstrumentKind.COUNTER
    whose = ("component",)
    about = "Connections and requests that were refused, or cut off, before the component heard of them."
    return [
        Instrument("listener_connections", gauge, "Connections that are open.", whose, connections),
        Instrument("listener_refused_total", counter, about, (*whose, "reason"), refused),
    ]
