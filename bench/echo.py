"""Reference (a): an ASGI application on the same server that only reads the body and answers the same bytes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal, cast

from pipeline.cli import event_loop_factory
from pipeline.config.fields import ListenerConfig
from pipeline.serving import Listener

ANSWER = b'{"status":"success","accepted":1,"rejected":0,"errors":[],"request_id":"req_8a7b6c5d8a7b6c5d"}'
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(ANSWER)),
    (b"x-request-id", b"req_8a7b6c5d8a7b6c5d"),
    (b"x-ratelimit-limit", b"1000000000"),
    (b"x-ratelimit-remaining", b"999999999"),
]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Read, and answer."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


async def main(server: str, port: int) -> None:
    """Serve until killed."""
    kind = cast('Literal["hypercorn", "uvicorn"]', server)
    listener = Listener(ListenerConfig(host="127.0.0.1", port=port, server=kind), echo)
    await listener.start(grace=1)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
