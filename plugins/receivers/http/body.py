"""Reading a request's body, bounded in bytes, time and inflation."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from pipeline import Malformed, Refusal, TooLarge, Unsupported

try:
    import zstandard

    ENCODINGS = "gzip, deflate or zstd"
except ImportError:  # "where the service has the library" (docs/api.md)
    zstandard = None  # type: ignore[assignment]
    ENCODINGS = "gzip or deflate"

SKIPPED_BYTES = 64 * 1024
"""Up to what size the rest of a body is worth reading, to keep the connection for another request."""
_ZLIB_WINDOW = {b"gzip": 31, b"deflate": 15}
ZSTD_WINDOW = 8 * 2**20
"""What a zstd decoder of HTTP must be ready for, in bytes (RFC 9659)."""


class TooSlow(Refusal):
    """The body did not arrive in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"body not received within {seconds:g} s")


class Gone(Refusal):
    """The client left before its body was complete; nobody reads the answer."""


async def read_body(receive: Any, headers: dict[bytes, bytes], limit: int, seconds: float) -> bytes:
    """The whole body, decompressed. `limit` is in bytes and holds before and after decompression.

    Raises `TooLarge`, `TooSlow`, `Gone`, `Malformed` if the compression is broken, `Unsupported` if it is unknown.
    """
    length = headers.get(b"content-length")
    if length is not None and int(length) > limit:
        raise too_large(limit)
    body = await _receive_in_time(receive, limit, seconds)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else decompress(body, encoding, limit)


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit, in bytes."""
    return TooLarge(f"Request body is larger than {limit} bytes")


async def _receive_in_time(receive: Any, limit: int, seconds: float) -> bytes:
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
        return await _receive(receive, limit)
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


async def _receive(receive: Any, limit: int) -> bytes:
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
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunk if len(chunks) == 1 else b"".join(chunks)


def decompress(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body without the `Content-Encoding`. Raises `TooLarge` at `limit` bytes, `Malformed`, `Unsupported`."""
    encoding = encoding.strip().lower()
    if encoding == b"identity":
        return body
    if encoding in _ZLIB_WINDOW:
        return _inflate(body, _ZLIB_WINDOW[encoding], limit)
    if encoding == b"zstd" and zstandard is not None:
        return _unzstd(body, limit)
    raise Unsupported(f"Content-Encoding must be {ENCODINGS}")


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error:
        raise Malformed("body is not what its Content-Encoding says") from None
    if len(plain) > limit:
        raise TooLarge(f"Decompressed body is larger than {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise Malformed("compressed body is cut short or followed by something else")
    return plain


def _unzstd(body: bytes, limit: int) -> bytes:
    # Bounds the window too: a frame can ask for gigabytes of it before it gives a byte.
    decompressor = zstandard.ZstdDecompressor(max_window_size=max(ZSTD_WINDOW, limit))
    try:
        with decompressor.stream_reader(body) as reader:
            plain = reader.read(limit + 1)
        if len(plain) > limit:
            raise TooLarge(f"Decompressed body is larger than {limit} bytes")
        stream = decompressor.decompressobj()  # which knows where the frame ends, and is not bounded
        stream.decompress(body)
    except zstandard.ZstdError:
        raise Malformed("body is not what its Content-Encoding says") from None
    if not stream.eof or stream.unused_data:
        raise Malformed("compressed body is cut short or followed by something else")
    return plain
