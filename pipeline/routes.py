"""HTTP routes as plain values: components offer them, a receiver mounts them, its own chain authorises them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.data import Context


class Access(StrEnum):
    """Who may call a route."""

    PUBLIC = "public"
    KEY = "key"
    """Any good key."""
    INGEST = "ingest"
    ADMIN = "admin"


@dataclass(frozen=True)
class Request:
    """A call of a route. `parameters` are those of the path and the query, `body` is whole and decompressed."""

    parameters: Mapping[str, str]
    body: bytes
    context: Context


@dataclass(frozen=True)
class Response:
    """An answer: `body` is any JSON value, or text with a `content_type` of its own."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True)
class Route:
    """One call of the API. `path` may hold `{name}` segments, `cost` is in tokens of the caller's rate limit.

    `access` has no default, so that nobody opens a route by forgetting to close it.
    """

    method: str
    path: str
    access: Access
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    cost: int = 1
