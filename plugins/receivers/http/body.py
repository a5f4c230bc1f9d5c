"""Reading a request's body, bounded in bytes, time and inflation, and all bodies together in bytes."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any

import anyio

from pipeline import Malformed, Overloaded, Refusal, TooLarge, Unsupported

try:
    import zstandard

    ENCODINGS = "gzip, deflate or zstd"
except ImportError:  # "where the service has the library" (docs/api.md)
    zstandard = None  # type: ignore[assignment]
    ENCODINGS = "gzip or deflate"

SECONDS_UNTIL_LESS = 1.0
"""When to try again what found too many bytes in flight, in seconds."""
INLINE_BYTES = 256 * 1024
"""Up to what size a body is inflated at once: a millisecond. More is left to a thread, one body after the other, so that neither
the event loop nor the memory has to do with all bombs at a time."""
SKIPPED_BYTES = 64 * 1024
"""Up to what size the rest of a body is worth reading, to keep the connection for another request."""
_ZLIB_WINDOW = {b"gzip": 31, b"deflate": 15}
_one_at_a_time = anyio.CapacityLimiter(1)
ZSTD_WINDOW = 8 * 2**20
"""What a zstd decoder of HTTP must be ready for, in bytes (RFC 9659)."""


class TooSlow(Refusal):
    """The body did not arrive in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"body not received within {seconds:g} s")


class Gone(Refusal):
    """The client left before its body was complete; nobody reads the answer."""


class InFlight:
    """The bytes of all bodies that requests hold now, and how many they may be."""

    __slots__ = ("bytes", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.bytes = 0


def _unbounded(size: int) -> None:
    """Accept any size: there is not always a memory budget."""


class Share:
    """The bytes that one request holds of them. A request that nobody shares with may hold any number.

    `budget` is called with each number of bytes, and raises `Overloaded` if the memory budget has no room for them.
    """

    __slots__ = ("_all", "_budget", "_own")

    def __init__(self, all: InFlight, budget: Callable[[int], None] = _unbounded) -> None:
        self._all = all
        self._budget = budget
        self._own = 0

    def take(self, size: int) -> None:
        """Hold so many more. Raises `Overloaded` if all requests together hold too many then."""
        if self._all.bytes + size > self._all.limit and self._all.bytes > self._own:
            raise Overloaded("Too many bytes are being received now", SECONDS_UNTIL_LESS)
        self._budget(size)
        self._own += size
        self._all.bytes += size

    def give_back(self) -> None:
        """Hold none any more."""
        self._all.bytes -= self._own
        self._own = 0


async def read_body(receive: Any, headers: dict[bytes, bytes], limit: int, seconds: float, share: Share) -> bytes:
    """The whole body, decompressed. `limit` is in bytes and holds before and after decompression; `share` takes what is held.

    Raises `TooLarge`, `TooSlow`, `Gone`, `Overloaded`, `Malformed` if the compression is broken, `Unsupported` if it is unknown,
    `MemoryError` if unpacking it runs out of memory.
    """
    length = headers.get(b"content-length")
    if length is not None and int(length) > limit:
        raise too_large(limit)
    body = await _receive_in_time(receive, limit, seconds, share)
    encoding = headers.get(b"content-encoding")
    if encoding is None:
        return body
    body = await decompress(body, encoding, limit)
    share.take(len(body))
    return body


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit, in bytes."""
    return TooLarge(f"Request body is larger than {limit} bytes")


async def _receive_in_time(receive: Any, limit: int, seconds: float, share: Share) -> bytes:
    """What `asyncio.timeout` does, with less: in a profile of small pushes that was about a tenth of the time."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task(loop)
    assert task is not None
    late = False

    def stop() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = loop.call_later(seconds, stop)
    try:
        return await _receive(receive, limit, share)
    except asyncio.CancelledError:
        if late and task.uncancel() == 0:
            raise TooSlow(seconds) from None
        raise
    finally:
        timer.cancel()


def closes(refusal: Refusal, headers: dict[bytes, bytes]) -> bool:
    """Whether a request that was refused before its body was read is the last of its connection."""
    length = headers.get(b"content-length", b"0")
    return isinstance(refusal, TooSlow) or b"transfer-encoding" in headers or int(length) > SKIPPED_BYTES


async def _receive(receive: Any, limit: int, share: Share) -> bytes:
    chunks = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone("the client left")
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        share.take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunk if len(chunks) == 1 else b"".join(chunks)


async def decompress(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body without the `Content-Encoding`. Raises `TooLarge` at `limit` bytes, `Malformed`, `Unsupported`."""
    encoding = encoding.strip().lower()
    if encoding == b"identity":
        return body
    if encoding in _ZLIB_WINDOW:
        plain, whole = await _inflate(body, _ZLIB_WINDOW[encoding], limit)
    elif encoding == b"zstd" and zstandard is not None:
        if _is_said_to_be_small(body):
            plain, whole = _unzstd(body, limit)
        else:
            plain, whole = await anyio.to_thread.run_sync(_unzstd, body, limit, limiter=_one_at_a_time)
    else:
        raise Unsupported(f"Content-Encoding must be {ENCODINGS}")
    if len(plain) > limit:
        raise TooLarge(f"Decompressed body is larger than {limit} bytes")
    if not whole:
        raise Malformed("compressed body is damaged, cut short or followed by something else")
    return plain


async def _inflate(body: bytes, window: int, limit: int) -> tuple[bytes, bool]:
    """Up to a byte more than the limit, and whether that is all and nothing else."""
    stream = zlib.decompressobj(window)
    try:
        plain = stream.decompress(body, min(limit + 1, INLINE_BYTES))
        if len(plain) == INLINE_BYTES <= limit and not stream.eof:
            rest = (stream.unconsumed_tail, limit + 1 - INLINE_BYTES)
            plain += await anyio.to_thread.run_sync(stream.decompress, *rest, limiter=_one_at_a_time)
    except zlib.error as error:
        if str(error).startswith("Error -4"):  # Z_MEM_ERROR: the body may be good
            raise MemoryError(str(error)) from None
        return b"", False
    return plain, stream.eof and not stream.unused_data


def _is_said_to_be_small(body: bytes) -> bool:
    try:
        return 0 <= zstandard.frame_content_size(body) <= INLINE_BYTES
    except zstandard.ZstdError:  # no zstd at all, which is found out soon
        return True


def _unzstd(body: bytes, limit: int) -> tuple[bytes, bool]:
    """As `_inflate`. An error that left a thread would keep what was unpacked until the garbage collector comes by."""
    # Bounds the window too: a frame can ask for gigabytes of it before it gives a byte.
    decompressor = zstandard.ZstdDecompressor(max_window_size=max(ZSTD_WINDOW, limit))
    try:
        with decompressor.stream_reader(body) as reader:
            plain = reader.read(limit + 1)
        if len(plain) > limit:
            return plain, False
        stream = decompressor.decompressobj()  # which knows where the frame ends, and is not bounded
        stream.decompress(body)
    except zstandard.ZstdError as error:
        # It has no code. A failed allocation says nothing about the body, but a frame that asks for too much memory is at fault.
        if "allocat" in str(error).lower():
            raise MemoryError(str(error)) from None
        return b"", False
    return plain, stream.eof and not stream.unused_data
