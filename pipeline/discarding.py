"""Discards the bytes that a client sends after the last answer of its connection.

Closing the connection at once would lose the answer: unread data causes a reset. The bytes are neither parsed nor decrypted nor copied.
All connections together are read at a bounded rate, so that a refused client causes no work.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

TURN_SECONDS = 0.02
"""Seconds between two turns."""
TURN_BYTES = 2 * 2**20
"""Bytes of all connections together that are discarded in a turn."""
SHARE_BYTES = 8 * 2**10
"""Bytes of one connection that are discarded in a turn, at least."""
_buffer = bytearray(TURN_BYTES)
_FLAGS = getattr(socket, "MSG_TRUNC", 0)  # with it, Linux does not even copy


class Discarding:
    """The connections of a listener whose bytes are discarded."""

    def __init__(self) -> None:
        self._connections: dict[asyncio.Transport, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transport: asyncio.Transport, ended: Callable[[], None]) -> None:
        """Read this connection instead of its protocol, until `remove`. `ended` is called when the client sends no more."""
        transport.pause_reading()
        self._connections[transport] = ended
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self._turn)

    def remove(self, transport: asyncio.Transport) -> None:
        """Leave this connection alone. Safe twice, and without `add`."""
        self._connections.pop(transport, None)

    def _turn(self) -> None:
        self._timer = None
        size = max(SHARE_BYTES, TURN_BYTES // max(1, len(self._connections)))
        for transport, ended in list(self._connections.items()):
            if transport.is_closing():
                self.remove(transport)
            elif not _discard(transport, size):
                self.remove(transport)
                ended()
        if self._connections:
            self._timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self._turn)


def _discard(transport: asyncio.Transport, size: int) -> bool:
    """Discard up to `size` bytes. Returns whether more may come."""
    transport.pause_reading()  # a stream with room in its buffer resumes reading by itself
    known: Any = transport.get_extra_info("socket")
    descriptor = known.fileno()
    if descriptor < 0:
        return False
    sock = socket.socket(known.family, known.type, known.proto, fileno=descriptor)
    try:
        return sock.recv_into(_buffer, size, _FLAGS | socket.MSG_DONTWAIT) > 0
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        sock.detach()
