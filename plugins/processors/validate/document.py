"""The document that clients push, as msgspec types, and what must hold for it as a whole."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_SHOWN_INPUT = 64

Value = Annotated[float, Meta(ge=-1e12, le=1e12)]
Milliseconds = Annotated[float, Meta(ge=0, le=86_400_000)]
Name = Annotated[str, Meta(min_length=1, max_length=50)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
DimensionValue = Annotated[str, Meta(max_length=200)] | Integer | float | bool | None
Dimensions = Annotated[dict[Name, DimensionValue], Meta(max_length=20)]
Metadata = Annotated[dict[Name, Any], Meta(max_length=30)]


class PushedMetric(msgspec.Struct, gc=False):
    """One object of `metrics`. Null means absent (api.md: clients send it for what they don't have)."""

    type: str
    value: Value
    duration_ms: Milliseconds | None = None
    timestamp: str | None = None
    dimensions: Dimensions | None = None
    metadata: Metadata | None = None


class Document(msgspec.Struct, gc=False):
    """The body of a push. Fields that it has beyond these are ignored."""

    service: str
    metrics: list[PushedMetric]
    version: str | None = None
    instance_id: str | None = None


_SERVICE = re.compile(r"[A-Za-z0-9_-]{1,100}")
_INSTANCE = re.compile(r"[A-Za-z0-9_.-]{1,100}")
MAX_VERSION = 64

Details = list[dict[str, Any]]


def check_document(document: Any) -> Details:
    """What is wrong with the document as a whole, in the form of api.md's 422; empty if nothing is.

    Takes the typed document, or any JSON value.
    """
    if isinstance(document, Document):
        service, version, instance = document.service, document.version, document.instance_id
        metrics: Any = document.metrics
    elif isinstance(document, dict):
        missing = [
            _detail("missing", [name], "Field required", None)
            for name in ("service", "metrics")
            if name not in document
        ]
        if missing:
            return missing
        service, metrics = document["service"], document["metrics"]
        version, instance = document.get("version"), document.get("instance_id")
    else:
        return [_detail("dict_type", [], "Input should be an object", document)]
    details: Details = []
    if not isinstance(service, str):
        details.append(_detail("string_type", ["service"], "Input should be a string", service))
    elif not _SERVICE.fullmatch(service):
        details.append(_pattern(["service"], "1 to 100 of A-Z a-z 0-9 _ -", service))
    if version is not None and not (isinstance(version, str) and len(version) <= MAX_VERSION):
        details.append(
            _detail("string_type", ["version"], f"Input should be a string of at most {MAX_VERSION}", version)
        )
    if instance is not None and not (isinstance(instance, str) and _INSTANCE.fullmatch(instance)):
        details.append(_pattern(["instance_id"], "1 to 100 of A-Z a-z 0-9 _ . -", instance))
    if not isinstance(metrics, list):
        details.append(_detail("list_type", ["metrics"], "Input should be a list", metrics))
    elif not metrics:
        details.append(_detail("too_short", ["metrics"], "List should have at least 1 item", metrics))
    return details


def _pattern(location: list[str], rule: str, found: Any) -> dict[str, Any]:
    return _detail("string_pattern_mismatch", location, f"String should be {rule}", found)


def _detail(kind: str, location: list[str], message: str, found: Any) -> dict[str, Any]:
    """`input` shows scalars only, cut: an answer must not echo a body."""
    shown = found
    if isinstance(found, str):
        shown = found[:MAX_SHOWN_INPUT]
    elif isinstance(found, dict | list):
        shown = {} if isinstance(found, dict) else []
    return {"type": kind, "loc": ["body", *location], "msg": message, "input": shown}
