"""The table of hostile and broken requests: what is sent, and which statuses are right.

The letter of a name is what is attacked: A connections, B framing, C bodies, D documents, E keys. docs/api.md says what is right.
"""

from __future__ import annotations

import gzip
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import zstandard

from tests.faults.raw import GOOD, chunked, push, request
from tests.running import ADMIN_KEY, KEY

Data = bytes | Callable[[], Iterable[bytes]]
METRIC = {"type": "custom", "value": 1}
SMUGGLED = b"0\r\n\r\n" + push()
ZIPPED = gzip.compress(GOOD)
GZIP = "Content-Encoding: gzip"
CLOSED = 0
"""In place of a status: the connection is closed without an answer."""


@cache
def zeros(encoding: str) -> bytes:
    """200 MB of them, packed so; made when they are first asked for, since that takes a while."""
    plain = bytes(200_000_000)
    match encoding:
        case "gzip":
            return gzip.compress(plain, 1)
        case "deflate":
            return zlib.compress(plain, 1)
        case _:
            return zstandard.ZstdCompressor(level=3, write_content_size=False).compress(plain)


def bomb(encoding: str) -> Iterator[bytes]:
    """A push of them."""
    yield push(zeros(encoding), f"Content-Encoding: {encoding}")


def document(*metrics: object, **fields: object) -> bytes:
    """A document, as a push has it."""
    return json.dumps({"service": "test", "metrics": metrics, **fields}).encode()


def many(item: bytes, size: int = 8 * 2**20) -> bytes:
    """A document of as many of these items as go into that many bytes."""
    return b'{"service":"test","metrics":[%s]}' % ((item + b",") * (size // (len(item) + 1)))[:-1]


def of_value(text: str) -> bytes:
    """A document whose one value is this text."""
    return push(b'{"service":"test","metrics":[{"type":"custom","value":%s}]}' % text.encode())


def in_metadata(text: bytes) -> bytes:
    """A document that has this text in its metadata."""
    return push(b'{"service":"test","metrics":[{"type":"custom","value":1,"metadata":{"a":%s}}]}' % text)


def in_dimensions(entry: bytes) -> bytes:
    """A document whose one metric has these bytes as its one dimension."""
    return push(b'{"service":"test","metrics":[{"type":"custom","value":1,"dimensions":{%s}}]}' % entry)


def framed(*headers: str, body: bytes = SMUGGLED) -> bytes:
    """A push whose framing is these headers, with a second push in what may be taken for its body."""
    return request("POST /metrics HTTP/1.1", *headers, body=body)


def named(name: str) -> bytes:
    """A push with a dimension of this name."""
    return push(document({**METRIC, "dimensions": {name: "x"}}))


def broken(body: bytes) -> bytes:
    """A push of this, said to be gzip."""
    return push(body, GZIP)


def chunks_and(*rest: bytes) -> Callable[[], Iterable[bytes]]:
    """The beginning of a push in chunks, and then this, the last of it without end."""
    begun = request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n" % (len(GOOD), GOOD))
    return lambda: itertools.chain([begun, *rest], itertools.repeat(rest[-1] * 1000, 1000))


DEEP = b"[" * 100_000 + b"]" * 100_000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
ENDLESS = push(b"", key=None).replace(b"Content-Length: 0", b"Content-Length: 9000000")
FORM = ("Content-Type: application/x-www-form-urlencoded", "Content-Length: 13")
BROWSER = ("Origin: http://evil", "Access-Control-Request-Method: POST")
FRAMES = {
    "settings": struct.pack(">I", 0)[1:] + b"\x04\x00" + bytes(4),
    "reset": struct.pack(">I", 4)[1:] + b"\x03\x00" + struct.pack(">II", 1, 8),
    "continuation": struct.pack(">I", 1000)[1:] + b"\x09\x00" + struct.pack(">I", 1) + bytes(1000),
}

ROWS: dict[str, tuple[Data, set[int]]] = {
    "A6 header without end": (
        lambda: itertools.chain([b"GET /health HTTP/1.1\r\nA: "], itertools.repeat(b"x" * 65536, 1000)),
        {431, 400, CLOSED},
    ),
    "A6 lines without end": (
        lambda: itertools.chain([b"GET /health HTTP/1.1\r\n"], itertools.repeat(b"A: b\r\n" * 10000, 1000)),
        {431, 400, CLOSED},
    ),
    "A6 101 headers": (push(GOOD, *(f"X-{n}: y" for n in range(101))), {431}),
    "A6 header of 20 KB at once": (push(GOOD, "X: " + "y" * 20_000), {431}),
    "A6 url of 9 KB": (push(path="/metrics?" + "y" * 9_000), {414}),
    "A9 h2 preface": (PREFACE + FRAMES["settings"], {400, 505}),
    "A9 h2c": (request("GET /health HTTP/1.1", *H2C), {200}),
    "A9 h2c and body": (request("OPTIONS /metrics HTTP/1.1", *H2C), {405}),
    "A10 rapid resets": (
        lambda: itertools.chain([PREFACE + FRAMES["settings"]], itertools.repeat(FRAMES["reset"], 20_000)),
        {400, 505},
    ),
    "A11 continuations": (
        lambda: itertools.chain([PREFACE + FRAMES["settings"]], itertools.repeat(FRAMES["continuation"], 20_000)),
        {400, 505},
    ),
    "A13 tls hello": (bytes.fromhex("16030100c8010000c40303") + bytes(range(195)), {400}),
    "A13 noise": (bytes((n * 151 + 89) % 256 for n in range(200)) + b"\r\n\r\n", {400}),
    "B1 length and chunked": (framed("Content-Length: 5", "Transfer-Encoding: chunked"), {400}),
    "B1 chunked and length": (framed("Transfer-Encoding: chunked", "Content-Length: 5"), {400}),
    "B1 chunked twice": (framed("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), {400, 501}),
    "B2 two lengths": (framed("Content-Length: 5", "Content-Length: 6"), {400}),
    "B3 length +5": (framed("Content-Length: +5"), {400}),
    "B3 length 0x5": (framed("Content-Length: 0x5"), {400}),
    "B3 length -1": (framed("Content-Length: -1"), {400}),
    "B3 length of 23 digits": (framed("Content-Length: " + "9" * 23), {400, 413}),
    "B4 folded encoding": (framed("Transfer-Encoding:\r\n chunked"), {400}),
    "B4 folded length": (framed("Content-Length:\r\n\t5"), {400}),
    "B4 folded after a value": (framed("Content-Length: 5", "X: a\r\n b"), {400}),
    "B4 folded first line": (request("POST /metrics HTTP/1.1\r\n X: a", "Content-Length: 5", body=SMUGGLED), {400}),
    "B5 no host": (push().replace(b"Host: test\r\n", b""), {400}),
    "B5 two hosts": (push(GOOD, "Host: test"), {400}),
    "B5 host with an empty label": (push().replace(b"Host: test", b"Host: a..b"), {400}),
    "B5 host with an empty label for a page": (b"GET /docs HTTP/1.1\r\nHost: a..b\r\n\r\n", {400}),
    "B5 host with a label of 64 characters": (push().replace(b"Host: test", b"Host: " + b"a" * 64), {400}),
    "B5 length of 5,000 digits": (framed("Content-Length: " + "5".zfill(5000)), {400}),
    "B5 length of 5,000 digits for a page": (
        request("GET /health HTTP/1.1", "Content-Length: " + "5".zfill(5000), body=b"01234"),
        {400},
    ),
    "B6 chunk -1": (framed("Transfer-Encoding: chunked", body=b"-1\r\n" + SMUGGLED), {400}),
    "B6 chunk overflow": (framed("Transfer-Encoding: chunked", body=b"f" * 30 + b"\r\n" + SMUGGLED), {400}),
    "B6 chunk without end": (framed("Transfer-Encoding: chunked", body=b"1\r\nab\r\n" + SMUGGLED), {400}),
    "B8 key in trailer": (
        request(
            "POST /metrics HTTP/1.1",
            "Transfer-Encoding: chunked",
            body=b"%x\r\n%s\r\n0\r\nX-API-Key: %s\r\n\r\n" % (len(GOOD), GOOD, KEY.encode()),
            key=None,
        ),
        {401},
    ),
    "B8 trailers without end": (chunks_and(b"0\r\n", b"A: b\r\n" * 10), {431, CLOSED}),
    "B8 a trailer without end": (chunks_and(b"0\r\nA: ", b"x" * 64), {431, CLOSED}),
    "B8 chunk extension without end": (chunks_and(b"1;", b"x" * 64), {431, CLOSED}),
    "B8 chunk size without end": (chunks_and(b"0" * 64), {431, 400, CLOSED}),
    "B10 absolute": (request("GET http://evil/admin/database/size HTTP/1.1"), {403}),
    "B10 connect": (b"CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n", {400, 501}),
    "B10 version 9.9": (push().replace(b"HTTP/1.1", b"HTTP/9.9"), {400, 505}),
    "B10 version 2.0": (push().replace(b"HTTP/1.1", b"HTTP/2.0"), {400, 505}),
    "B10 lower case": (push().replace(b"POST", b"post"), {400, 405, 501}),
    "B11 dots": (push(path="/%2e%2e/metrics"), {404}),
    "B11 nul": (push(path="/metrics%00"), {404}),
    "B11 ff": (push(path="/%ff"), {404}),
    "B11 slashes": (push(path="//metrics"), {404}),
    "B11 newline": (push(path="/%0d%0aX:%20y"), {404}),
    "C1 a terabyte": (request("POST /metrics HTTP/1.1", "Content-Length: 1000000000000"), {413}),
    "C2 chunks without end": (lambda: chunked(itertools.repeat(b" " * 65536)), {413}),
    "C3 bomb": (lambda: bomb("gzip"), {413}),
    "C3 deflate bomb": (lambda: bomb("deflate"), {413}),
    "C3 bomb for another page": (
        lambda: [request("POST /flush HTTP/1.1", GZIP, f"Content-Length: {60_000}", body=zeros("gzip")[:60_000])],
        {413},
    ),
    "C5 gzip cut short": (broken(ZIPPED[:-9]), {400}),
    "C5 gzip without its end": (broken(ZIPPED[:-1]), {400}),
    "C5 gzip with bad crc": (broken(ZIPPED[:-8] + bytes(8)), {400}),
    "C5 gzip and junk": (broken(ZIPPED + b"junk"), {400}),
    "C5 no gzip": (broken(GOOD), {400}),
    "C7 br": (push(GOOD, "Content-Encoding: br"), {415}),
    "C7 two encodings": (push(ZIPPED, "Content-Encoding: gzip, gzip"), {415}),
    "C8 text": (push(GOOD, "Content-Type: text/plain"), {415}),
    "C8 form": (push(GOOD, "Content-Type: application/x-www-form-urlencoded"), {415}),
    "C8 utf-16": (push(GOOD, "Content-Type: application/json; charset=utf-16"), {415}),
    "C9 empty": (push(b""), {400}),
    "D1 deep": (push(DEEP), {400}),
    "D1 deep in a field": (push(b'{"service":"test","x":%s,"metrics":[]}' % DEEP), {400}),
    "D1 deep in metadata": (in_metadata(DEEP), {400}),
    "D1 deep for another page": (
        request("POST /admin/retention/cleanup HTTP/1.1", "Content-Length: 60000", body=b"[" * 60_000, key=ADMIN_KEY),
        {400},
    ),
    "D2 not utf-8 in a name": (in_dimensions(b'"\xff\xfe":1'), {422}),
    "D2 not utf-8 outside of text": (push(b'{"service":"test","metrics":[]\xc3}'), {400}),
    "D2 cut in a character": (push(b'{"service":"test","x":"\xc3'), {400}),
    "D3 lone surrogate in a name": (in_dimensions(b'"\\ud800":1'), {422}),
    "D3 NUL in a name": (in_dimensions(b'"\\u0000":1'), {422}),
    "D4 a million metrics": (push(many(b'{"v":1}')), {413}),
    "D4 good ones": (push(many(b'{"type":"custom","value":1}')), {413}),
    "D4 numbers": (push(many(b"1")), {413}),
    "D4 strings": (push(many(b'""')), {413}),
    "D4 lists": (push(many(b"[]")), {413}),
    "D4 lists in metadata": (in_metadata(b"[%s]" % b",".join([b"[]"] * 10**6)), {413}),
    "D4 names in metadata": (in_metadata(b"{%s}" % b",".join(b'"%d":1' % n for n in range(700_000))), {413}),
    "D5 10,001 metrics": (push(document(*[METRIC] * 10_001)), {413}),
    "D9 unknown fields": (push(b'{"service":"test","x":"%s","metrics":[]}' % (b"y" * 18_000_000)), {413}),
    "D10 NaN": (of_value("NaN"), {400}),
    "D10 Infinity": (of_value("-Infinity"), {400}),
    "D10 1e400": (of_value("1e400"), {400, 422}),
    "D10 a million digits": (of_value("1" * 1_000_000), {400, 422}),
    "D14 label with newline": (named("le\n"), {422}),
    "D14 label empty": (named(""), {422}),
    "D14 label like a series": (named('a="x",b'), {422}),
    "D14 label of 10 KB": (named("a" * 10_000), {422}),
    "D23 service is a path": (push(document(METRIC, service="../../etc")), {422}),
    "D23 service is SQL": (push(document(METRIC, service="'; DROP TABLE metrics; --")), {422}),
    "D25 all bad": (push(document(*[{"type": "custom"}] * 500)), {422}),
    "E1 no key": (push(key=None), {401}),
    "E1 unknown key": (push(key="k" * 50), {401}),
    "E1 bad checksum": (push(key="mcp_metrics_" + "a" * 49), {401}),
    "E1 no key, endless": (lambda: [ENDLESS, *[b"x" * 65536] * 100], {401}),
    "E3 key in the query": (push(path=f"/metrics?X-API-Key={KEY}&api_key={KEY}", key=None), {401}),
    "E3 key in the document": (push(document(METRIC, api_key=KEY, key=KEY), key=None), {401}),
    "E4 ingest key for admin": (request("POST /admin/retention/cleanup?dry_run=false HTTP/1.1"), {403}),
    "E5 wrong key": (request("GET /rate-limit HTTP/1.1", key="wrong"), {401}),
    "E11 preflight": (request("OPTIONS /admin/retention/cleanup HTTP/1.1", *BROWSER, key=None), {405}),
    "E11 form for admin": (
        request(
            "POST /admin/retention/cleanup HTTP/1.1", "Origin: http://evil", *FORM, body=b"dry_run=false", key=None
        ),
        {401},
    ),
}
