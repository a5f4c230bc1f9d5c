"""Memory that runs out while a request is read: no answer, 500 or 503, never a status that tells the client to give up."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline import serving_uvicorn
from tests.pipeline.test_serving_upgrade import Server, answered, framed, listening

pytestmark = pytest.mark.anyio

HEADERS, BODY = framed("length", b"{}")
PUSH = "\r\n".join(["POST /a?b=%20 HTTP/1.1", "Host: a", "Connection: close", *HEADERS, "", ""]).encode() + BODY
CALLBACKS = ("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete")


def exhausted(*arguments: Any) -> None:
    bytes(sys.maxsize)


class Full(list[str]):
    """A list that nothing can be added to."""

    append = exhausted


def status(received: bytes) -> int | None:
    return int(received.split(maxsplit=2)[1]) if received else None


@pytest.mark.parametrize("callback", CALLBACKS)
async def test_uvicorn_does_not_blame_the_request(monkeypatch: pytest.MonkeyPatch, callback: str) -> None:
    async with listening("uvicorn") as (listener, app):
        monkeypatch.setattr(HttpToolsProtocol, callback, exhausted)
        assert status(await answered(listener, [PUSH])) == 503
        assert listener.guard.refused == {"error": 1}
        monkeypatch.undo()
        assert status(await answered(listener, [PUSH])) == 200
        assert app.paths[-1] == "/a"


async def test_hypercorn_does_not_blame_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening("hypercorn") as (listener, _):
        for place in (
            "h11._receivebuffer.ReceiveBuffer.maybe_extract_lines",
            "h11._readers.ContentLengthReader.__call__",
        ):
            monkeypatch.setattr(place, exhausted)
            assert status(await answered(listener, [PUSH])) in (None, 500, 503)
            monkeypatch.undo()
        assert status(await answered(listener, [PUSH])) == 200


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_an_application_without_memory_does_not_blame_the_request(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    async with listening(server) as (listener, app):
        monkeypatch.setattr(app, "paths", Full())
        assert status(await answered(listener, [PUSH])) == 500


async def test_a_server_that_blames_the_request_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_uvicorn, "_CLIENT_ERRORS", (Exception,))
    monkeypatch.setattr(HttpToolsProtocol, "on_body", exhausted)
    async with listening("uvicorn") as (listener, _):
        assert status(await answered(listener, [PUSH])) == 400
