"""Reading bodies: however they are cut, compressed, damaged or late."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import math
import random
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Malformed, Overloaded, TooLarge
from plugins.receivers.http.body import INLINE_BYTES, Gone, InFlight, Share, TooSlow, read_body
from tests.plugins.receivers.wire import connected, request
from tests.running import running

pytestmark = pytest.mark.anyio

MEGABYTE = 10**6
LIMIT = 10 * MEGABYTE
ALONE = Share(InFlight(math.inf))

COMPRESS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
plains = st.binary(max_size=500) | st.builds(
    lambda piece, times: piece * times, st.binary(max_size=20), st.integers(0, 300)
)
encodings = st.sampled_from(list(COMPRESS))


def receive_of(body: bytes, cuts: list[int], *, complete: bool = True) -> Callable[[], Awaitable[Any]]:
    """What a server calls `receive`, for this body cut at these places; without its end, the client leaves."""
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    chunks = [body[start:end] for start, end in itertools.pairwise(places)] or [b""]
    messages: list[Any] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request"} if complete else {"type": "http.disconnect"})
    remaining = iter(messages)

    async def receive() -> Any:
        return next(remaining)

    return receive


async def read(body: bytes, encoding: bytes | None = None, cuts: list[int] | None = None, limit: int = LIMIT) -> bytes:
    """The body as `read_body` gives it."""
    headers = {b"content-encoding": encoding} if encoding else {}
    return await read_body(receive_of(body, cuts or []), headers, limit, 10, ALONE)


@given(body=plains, cuts=st.lists(st.integers(min_value=0), max_size=20))
async def test_a_body_is_the_same_however_it_is_cut(body: bytes, cuts: list[int]) -> None:
    assert await read(body, cuts=cuts) == body
    with pytest.raises(Gone):
        await read_body(receive_of(body, cuts, complete=False), {}, LIMIT, 10, ALONE)


@given(plain=plains, encoding=encodings, cuts=st.lists(st.integers(min_value=0), max_size=20))
async def test_a_compressed_body_is_the_same_however_it_is_cut(plain: bytes, encoding: bytes, cuts: list[int]) -> None:
    assert await read(COMPRESS[encoding](plain), encoding, cuts) == plain


@given(
    plain=plains,
    encoding=encodings | st.none(),
    cuts=st.lists(st.integers(min_value=0), max_size=5),
    limit=st.integers(0, 600),
)
async def test_the_limit_holds_before_and_after_decompression(
    plain: bytes, encoding: bytes | None, cuts: list[int], limit: int
) -> None:
    body = COMPRESS[encoding](plain) if encoding else plain
    if max(len(plain), len(body)) <= limit:
        assert await read(body, encoding, cuts, limit) == plain
    else:
        with pytest.raises(TooLarge):
            await read(body, encoding, cuts, limit)


async def test_a_length_over_the_limit_is_refused_without_reading() -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    with pytest.raises(TooLarge):
        await read_body(receive, {b"content-length": b"101"}, 100, 10, ALONE)


@given(plain=plains, encoding=encodings, data=st.data())
async def test_a_body_that_is_cut_short_is_malformed(plain: bytes, encoding: bytes, data: st.DataObject) -> None:
    body = COMPRESS[encoding](plain)
    with pytest.raises(Malformed):
        await read(body[: data.draw(st.integers(0, len(body) - 1))], encoding)


@given(plain=plains, encoding=encodings, junk=st.binary(min_size=1, max_size=50))
async def test_a_body_that_something_follows_is_malformed(plain: bytes, encoding: bytes, junk: bytes) -> None:
    with pytest.raises(Malformed):
        await read(COMPRESS[encoding](plain) + junk, encoding)
    with pytest.raises(Malformed):
        await read(COMPRESS[encoding](plain) * 2, encoding)


@given(plain=plains, encoding=encodings, place=st.integers(min_value=0), bits=st.integers(1, 255))
async def test_a_damaged_body_is_never_taken_for_another(plain: bytes, encoding: bytes, place: int, bits: int) -> None:
    body = bytearray(COMPRESS[encoding](plain))
    body[place % len(body)] ^= bits
    with contextlib.suppress(Malformed, TooLarge):
        assert await read(bytes(body), encoding) == plain  # the damage was in a byte that means nothing


@given(body=st.binary(max_size=200), encoding=encodings)
async def test_what_is_not_compressed_at_all_is_malformed(body: bytes, encoding: bytes) -> None:
    with pytest.raises(Malformed):
        await read(body, encoding)


def bomb(encoding: bytes) -> bytes:
    """What becomes 1 GB of zeros."""
    zeros = bytes(MEGABYTE)
    if encoding == b"zstd":
        compressor = zstandard.ZstdCompressor().compressobj()
        return b"".join(compressor.compress(zeros) for _ in range(1000)) + compressor.flush()
    # A full flush makes blocks that stand for themselves: one is compressed, and then repeated.
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == b"gzip" else 15)
    first = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    return first + block * 999


@pytest.mark.parametrize("encoding", list(COMPRESS), ids=bytes.decode)
async def test_a_bomb_is_refused_without_blowing_up(encoding: bytes) -> None:
    body = bomb(encoding)
    assert len(body) < 1.1 * MEGABYTE
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            await read(body, encoding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT


async def test_a_frame_that_asks_for_a_huge_window_is_malformed() -> None:
    window_of_two_terabytes = b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00"
    with pytest.raises(Malformed):
        await read(window_of_two_terabytes, b"zstd")


@pytest.mark.parametrize("level", [1, 19])  # above them, windows are larger than HTTP allows (RFC 9659)
async def test_every_level_of_zstd_is_read_however_small_the_limit(level: int) -> None:
    plain = b"".join(number.to_bytes(4, "big") for number in range(200_000))
    stream = zstandard.ZstdCompressor(level=level).compressobj()  # which does not know how much will come
    assert await read(stream.compress(plain[:1000]) + stream.flush(), b"zstd", limit=2000) == plain[:1000]
    assert await read(zstandard.ZstdCompressor(level=level).compress(plain), b"zstd", limit=len(plain)) == plain


async def test_a_body_that_does_not_come_in_time_is_too_slow() -> None:
    async def receive() -> Any:
        await anyio.sleep_forever()

    with pytest.raises(TooSlow, match=r"^body not received within 0\.05 s$"):
        await read_body(receive, {}, LIMIT, 0.05, ALONE)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What somebody who reads the log would have to look into."""
    return [record.getMessage() for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["/metrics", "/flush"])
@pytest.mark.parametrize("sent", [b"", b'{"service":'])
async def test_a_client_that_sends_no_body_is_told_so_in_time(
    tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture, path: str, sent: bytes
) -> None:
    async with running(tmp_path, server, "receivers.http.body_timeout=0.3") as service, connected(service.port) as wire:
        began = time.monotonic()
        await wire.send(request(f"POST {path} HTTP/1.1", "Content-Length: 100", body=sent))
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert b'"body not received within 0.3 s"' in answer.body
        assert await wire.rest() == b""
        assert 0.3 <= time.monotonic() - began < 3
        assert (await service.push({"type": "custom", "value": 1})).status_code == 200
    assert tracebacks(caplog) == []


@pytest.mark.parametrize("head", [b"POST /metr", request("POST /metrics HTTP/1.1", "Content-Length: 100", body=b'{"a')])
async def test_a_client_that_leaves_half_way_leaves_no_traceback(
    tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    async with running(tmp_path, server) as service:
        for path in (b"/metrics", b"/flush"):
            async with connected(service.port) as wire:
                await wire.send(head.replace(b"/metrics", path))
            assert (await service.push({"type": "custom", "value": 1})).status_code == 200
    assert tracebacks(caplog) == []


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 3 * INLINE_BYTES, LIMIT])
async def test_a_body_that_is_inflated_in_a_thread_is_the_same(encoding: bytes, size: int) -> None:
    plain = random.Random(size).randbytes(1000) * (size // 1000) + b"x" * (size % 1000)
    packed = COMPRESS[encoding](plain)
    assert await read(packed, encoding) == plain
    for bad in (packed[:-1], packed + b"x"):
        with pytest.raises(Malformed):
            await read(bad, encoding)
    with pytest.raises(TooLarge):
        await read(packed, encoding, limit=size - 1)


async def test_what_all_requests_hold_is_limited_and_given_back() -> None:
    in_flight = InFlight(100)
    one, other = Share(in_flight), Share(in_flight)
    assert await read_body(receive_of(b"x" * 150, [50]), {}, LIMIT, 10, one) == b"x" * 150  # nobody else wanted it
    with pytest.raises(Overloaded):
        await read_body(receive_of(b"x", []), {}, LIMIT, 10, other)
    one.give_back()
    one.give_back()
    packed = gzip.compress(b"x" * 90)
    assert await read_body(receive_of(packed, []), {b"content-encoding": b"gzip"}, LIMIT, 10, other) == b"x" * 90
    with pytest.raises(Overloaded):
        await read_body(receive_of(b"x" * 20, [10]), {}, LIMIT, 10, one)
    one.give_back()
    other.give_back()
    assert in_flight.bytes == 0


class Exhausted:
    """A decompressor that has no memory, as zlib and zstandard say it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def decompress(self, *_: Any) -> bytes:
        raise self._error

    stream_reader = decompress


@pytest.mark.parametrize(
    ("encoding", "place", "error"),
    [
        (b"gzip", "zlib.decompressobj", zlib.error("Error -4 while decompressing data: insufficient memory")),
        (b"zstd", "zstandard.ZstdDecompressor", zstandard.ZstdError("could not allocate ZSTD_DCtx instance")),
        (b"zstd", "zstandard.ZstdDecompressor", zstandard.ZstdError("Allocation error : not enough memory")),
    ],
)
async def test_memory_that_runs_out_does_not_blame_the_body(
    monkeypatch: pytest.MonkeyPatch, encoding: bytes, place: str, error: Exception
) -> None:
    packed = COMPRESS[encoding](b"{}")
    monkeypatch.setattr(place, lambda *_, **__: Exhausted(error))
    with pytest.raises(MemoryError):
        await read(packed, encoding)
