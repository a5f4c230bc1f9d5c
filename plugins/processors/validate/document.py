"""The document that clients push, as msgspec types, and what must hold for it as a whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from pipeline import TooLarge

MAX_SHOWN = 64
"""How much of a bad value an answer shows, in characters: it must not echo a body."""
MAX_DIMENSIONS = 20
MAX_METADATA = 30

Service = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,100}\Z")]
Version = Annotated[str, Meta(max_length=64)] | None
InstanceId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,100}\Z")] | None
Value = Annotated[float, Meta(ge=-1e12, le=1e12)]
Milliseconds = Annotated[float, Meta(ge=0, le=86_400_000)]
Name = Annotated[str, Meta(min_length=1, max_length=50)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
DimensionValue = Annotated[str, Meta(max_length=200)] | Integer | float | bool | None
Dimensions = Annotated[dict[Name, DimensionValue], Meta(max_length=MAX_DIMENSIONS)]

Details = list[dict[str, Any]]


class PushedMetric(msgspec.Struct, gc=False):
    """One object of `metrics`. Null means absent (docs/api.md): clients send it for what they don't have."""

    type: str
    value: Value
    duration_ms: Milliseconds | None = None
    timestamp: str | None = None
    dimensions: Dimensions | None = None
    metadata: Raw = Raw()
    """Not decoded with the rest: as objects, it takes up to a hundred times as much memory as its text."""


class Document(msgspec.Struct, gc=False):
    """The body of a push. Fields that it has beyond these are ignored."""

    service: Service
    metrics: Annotated[list[PushedMetric], Meta(min_length=1)]
    version: Version = None
    instance_id: InstanceId = None


class _Outline(msgspec.Struct, gc=False):
    """The same document with its fields not looked into; a missing one is empty."""

    service: Raw = Raw()
    version: Raw = Raw()
    instance_id: Raw = Raw()
    metrics: Raw = Raw()


_read_outline = msgspec.json.Decoder(_Outline).decode
_FIELDS = {
    "service": (msgspec.json.Decoder(Service).decode, "1 to 100 of A-Z a-z 0-9 _ -"),
    "version": (msgspec.json.Decoder(Version).decode, "at most 64 characters"),
    "instance_id": (msgspec.json.Decoder(InstanceId).decode, "1 to 100 of A-Z a-z 0-9 _ . -"),
}
_read_any = msgspec.json.Decoder(Raw).decode


@lru_cache(maxsize=8)
def _list_of_at_most(limit: int) -> Callable[[Raw], Any]:
    """What decodes a list, as a structure of so many fields: a list of millions ends it where it is too long, in well under a
    millisecond. Decoding it all first, to count it, takes half a second and 300 MB."""
    fields = [(f"_{place}", Raw, Raw()) for place in range(limit)]
    kind = msgspec.defstruct("AtMost", fields, array_like=True, forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(kind).decode


def outline(document: bytes, limit: int) -> tuple[Document, list[Raw]] | Details:
    """The document without its metrics, and these undecoded; or what is wrong with it as a whole, in the form of the 422 of docs/api.md.

    Raises `msgspec.DecodeError` for what is not JSON, `TooLarge` if there are more metrics than `limit`.
    """
    try:
        fields = _read_outline(document)
    except msgspec.ValidationError:
        return [_detail("dict_type", [], "Input should be an object", _read_any(document))]
    missing = [name for name in ("service", "metrics") if not getattr(fields, name)]
    if missing:
        return [_detail("missing", [name], "Field required", Raw(b"null")) for name in missing]
    read: dict[str, Any] = {}
    details: Details = []
    for name, (decode, rule) in _FIELDS.items():
        field: Raw = getattr(fields, name)
        try:
            read[name] = decode(field) if field else None
        except msgspec.ValidationError:
            kind = "string_pattern_mismatch" if bytes(field)[:1] == b'"' else "string_type"
            details.append(_detail(kind, [name], f"Input should be a string of {rule}", field))
    metrics: list[Raw] = []
    try:
        metrics = [each for each in msgspec.structs.astuple(_list_of_at_most(limit)(fields.metrics)) if each]
    except msgspec.ValidationError:
        if bytes(fields.metrics)[:1] == b"[":
            raise TooLarge(f"more than {limit:,} metrics") from None
        details.append(_detail("list_type", ["metrics"], "Input should be a list", fields.metrics))
    else:
        if not metrics:
            details.append(_detail("too_short", ["metrics"], "List should have at least 1 item", fields.metrics))
    return details or (Document(metrics=[], **read), metrics)


def _detail(kind: str, location: list[str], message: str, found: Raw) -> dict[str, Any]:
    """`input` shows scalars only, cut."""
    shown: Any = {b"{": {}, b"[": []}.get(bytes(found)[:1])
    if shown is None:
        try:
            shown = msgspec.json.decode(found)
        except msgspec.ValidationError:  # a number that is out of range
            shown = bytes(found).decode()
    shown = shown[:MAX_SHOWN] if isinstance(shown, str) else shown
    return {"type": kind, "loc": ["body", *location], "msg": message, "input": shown}
