"""The API's description of itself, made from the routes: OpenAPI for programs, one page of HTML for people."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import Access, Route

_PUSH_BODY = {
    "type": "object",
    "required": ["service", "metrics"],
    "properties": {
        "service": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,100}$"},
        "version": {"type": ["string", "null"], "maxLength": 64},
        "instance_id": {"type": ["string", "null"], "pattern": "^[A-Za-z0-9_.-]{1,100}$"},
        "metrics": {
            "type": "array",
            "minItems": 1,
            "description": "How many at the most is an option of the service; one more is answered 413",
            "items": {
                "type": "object",
                "required": ["type", "value"],
                "properties": {
                    "type": {"type": "string"},
                    "value": {"type": "number", "minimum": -1e12, "maximum": 1e12},
                    "duration_ms": {"type": ["number", "null"], "minimum": 0, "maximum": 86_400_000},
                    "timestamp": {"type": ["string", "null"], "description": "ISO 8601; UTC unless it names a zone"},
                    "dimensions": {"type": ["object", "null"], "maxProperties": 20},
                    "metadata": {"type": ["object", "null"], "maxProperties": 30},
                },
            },
        },
    },
}
_PUSH_ANSWER = {
    "type": "object",
    "required": ["status", "accepted", "rejected", "errors", "request_id"],
    "properties": {
        "status": {"enum": ["success", "partial"]},
        "accepted": {"type": "integer"},
        "rejected": {"type": "integer"},
        "errors": {"type": "array", "items": {"type": "string"}},
        "request_id": {"type": "string"},
        "warnings": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What was changed in accepted metrics, by path; absent if nothing was",
        },
    },
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of the page for people: it loads nothing, runs nothing, and is shown in nobody's frame."""
_PUSH_EXAMPLE = {"service": "my-server", "metrics": [{"type": "auth_request", "value": 1.0, "duration_ms": 12.5}]}


@cache
def program_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("mcp-metrics-service")
    except PackageNotFoundError:
        return "0+unknown"


def description(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MCP Metrics Collection Service", "version": program_version()},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {"200": {"description": "Done"}},
    }
    names = re.findall(r"{(\w+)}", route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.access is not Access.PUBLIC:
        operation["security"] = [{"key": []}]
        operation["description"] = (
            f"Needs a key with the scope `{route.access}`." if route.access is not Access.KEY else "Needs a key."
        )
        operation["responses"] |= {
            "401": {"description": "No key, or not a good one"},
            "403": {"description": "The key lacks the scope"},
            "429": {"description": "Over the key's limit; see Retry-After"},
        }
    if route.path == "/metrics":
        content = {"application/json": {"schema": _PUSH_BODY, "example": _PUSH_EXAMPLE}}
        operation["requestBody"] = {"required": True, "content": content}
        operation["responses"] |= {
            "200": {
                "description": "What was accepted is durable",
                "content": {"application/json": {"schema": _PUSH_ANSWER}},
            },
            "400": {"description": "The body is not JSON"},
            "413": {"description": "The body is too large"},
            "415": {"description": "Not application/json"},
            "422": {"description": "Nothing could be accepted"},
            "503": {"description": "Cannot be made durable now; see Retry-After"},
        }
    return operation


def api_page(document: dict[str, Any]) -> str:
    """The document as one page of HTML that loads nothing."""
    rows = "".join(
        f"<tr><td><code>{html.escape(method.upper())}</code><td><code>{html.escape(path)}</code>"
        f"<td>{html.escape(operation['summary'])}<td>{html.escape(operation.get('description', 'Needs no key.'))}</tr>"
        for path, operations in sorted(document["paths"].items())
        for method, operation in operations.items()
    )
    info = document["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(info['title'])}</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.3em 1em;text-align:left}</style>"
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>"
        "<p>The same for programs: <a href=/openapi.json>/openapi.json</a></p>"
        f"<table><tr><th>Method<th>Path<th>What it does<th>Key</tr>{rows}</table></html>"
    )
