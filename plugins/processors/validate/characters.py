"""Replaces lone surrogates, bytes that are not UTF-8, and NUL by U+FFFD, and finds the paths of the values that had them.

A string that was cut in UTF-16 ends in half a character, and JavaScript writes it as a lone `\\ud83c`. One such string must not
refuse the other metrics of a push.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from msgspec import Raw

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PIECE_BYTES = 64 * 1024
"""How much is decoded at a time: as a Python string, 10 MB of JSON with one emoji take 40 MB."""

_DAMAGE = REPLACEMENT.encode()
_STAND_INS = ("\ufffe", "\uffff", "\ufdd0", "\ufdd1")
"""Noncharacters. The first that a document does not have replaces each U+FFFD that was sent, so that each U+FFFD is a replacement."""
_ESCAPED_REPLACEMENT = re.compile(rb"\\u[fF]{3}[dD]")
_ESCAPED_BACKSLASH = b"\xff"
_PAIRED_BACKSLASH = b"\xfe"
"""Bytes that UTF-8 never has, each in the place of what stands in a document."""
_HIGH_OF_PAIR = re.compile(rb"\\(?=u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})")
_LOW_OF_PAIR = re.compile(rb"(?<=\xfeu[0-9a-fA-F]{4})\\(?=u[dD][c-fC-F])")
_HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_ESCAPE_BYTES = 6
_LONE_OR_NUL = re.compile(rb"\\u(?:[dD][89a-fA-F][0-9a-fA-F]{2}|0000)")

_read_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_read_mapping = msgspec.json.Decoder(dict[str, Raw] | None).decode


class Repaired(NamedTuple):
    """A document without such characters. `document` has U+FFFD in their place. In `marked`, U+FFFD stands nowhere else: `stand_in`
    replaces each U+FFFD that was sent. If `stand_in` is empty, the document has every code point that could do so."""

    document: bytes
    marked: bytes
    stand_in: str


def may_hold_nul(document: bytes) -> bool:
    """Whether an escaped NUL may be in the document. It decodes, but a database may not store it."""
    return b"\\u0000" in document


def check_utf8(document: bytes) -> None:
    """Raise `UnicodeDecodeError` for what is not UTF-8. The decoder does not look into fields that it skips."""
    if document.isascii():
        return
    if len(document) <= PIECE_BYTES:
        document.decode()
        return
    for _ in _decoded(document, "strict"):
        pass


def _decoded(document: bytes, errors: str) -> Iterator[str]:
    """The document as text, piece by piece. A piece ends where a character begins."""
    start = 0
    while start < len(document):
        end = start + PIECE_BYTES
        # A character has at most three bytes behind its first.
        for _ in range(3):
            if end < len(document) and document[end] & 0xC0 == 0x80:
                end += 1
        try:
            yield document[start:end].decode(errors=errors)
        except UnicodeDecodeError as error:
            place = start + error.start
            raise UnicodeDecodeError("utf-8", document, place, place + 1, error.reason) from None
        start = end


async def repaired(document: bytes) -> Repaired | None:
    """The document with U+FFFD for each such character; None if it has none. Other requests run between two pieces."""
    # Without a stand-in, a warning may name a value that held U+FFFD when it was sent, which does no harm.
    stand_in = _stand_in(document)
    hidden = stand_in.encode()
    marked = document.replace(_DAMAGE, hidden) if hidden else document
    try:
        check_utf8(marked)
    except UnicodeDecodeError:
        marked = b"".join(piece.encode() for piece in _decoded(marked, "replace"))
    marked = marked.replace(b"\0", _DAMAGE)
    if b"\\u" in marked:
        marked = await _without_bad_escapes(marked, hidden)
    if _DAMAGE not in marked:
        return None
    return Repaired(marked.replace(hidden, _DAMAGE) if hidden else marked, marked, stand_in)


def _stand_in(document: bytes) -> str:
    """A code point that the document has neither as it is nor escaped. Empty if there is none."""
    for each in _STAND_INS:
        escaped = re.compile(rb"\\u%04x" % ord(each), re.IGNORECASE)
        if each.encode() not in document and escaped.search(document) is None:
            return each
    return ""


def damaged_values(metric: Raw, stand_in: str) -> Iterator[str]:
    """The path of each value in a metric of a marked document that holds U+FFFD, as `.dimensions.tool`. Raises
    `msgspec.DecodeError`."""
    if _DAMAGE not in bytes(metric):
        return
    fields = _read_fields(metric)
    for name in ("dimensions", "metadata"):
        field = fields.get(name, Raw(b"null"))
        for key, value in (_read_mapping(field) or {}).items():
            if REPLACEMENT in key or _DAMAGE in bytes(value):
                yield f".{name}.{_name(key, stand_in)}"


def _name(key: str, stand_in: str) -> str:
    """Plain where nothing else is possible, else quoted."""
    if stand_in:
        key = key.replace(stand_in, REPLACEMENT)
    return key if key.isascii() and key.isidentifier() else ascii(key)


async def _without_bad_escapes(document: bytes, hidden: bytes) -> bytes:
    """U+FFFD for each escaped NUL and each escaped surrogate without its other half. `hidden`, unless empty, replaces each escaped
    U+FFFD."""
    document = document.replace(b"\\\\", _ESCAPED_BACKSLASH)  # what follows one is text, and no escape
    pieces = []
    start = 0
    while start < len(document):
        end = _end_of_piece(document, start)
        piece = _HIGH_OF_PAIR.sub(_PAIRED_BACKSLASH, document[start:end])
        piece = _LOW_OF_PAIR.sub(_PAIRED_BACKSLASH, piece)
        if hidden:
            piece = _ESCAPED_REPLACEMENT.sub(hidden, piece)
        piece = _LONE_OR_NUL.sub(_DAMAGE, piece)
        pieces.append(piece.replace(_PAIRED_BACKSLASH, b"\\").replace(_ESCAPED_BACKSLASH, b"\\\\"))
        start = end
        if start < len(document):
            await asyncio.sleep(0)
    return b"".join(pieces)


def _end_of_piece(document: bytes, start: int) -> int:
    """Where a piece ends: neither in an escape, nor between an escaped high surrogate and what follows it."""
    end = start + PIECE_BYTES
    if end >= len(document):
        return len(document)
    escape = document.rfind(b"\\", end - _ESCAPE_BYTES, end)
    if escape == -1:
        return end
    before = document[escape - _ESCAPE_BYTES : escape]
    return escape - _ESCAPE_BYTES if _HIGH.fullmatch(before) else escape
