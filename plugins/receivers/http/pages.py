"""Everything on the port that is not hot: the routes that components offer, as a Quart application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import quart
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge, RequestTimeout

from pipeline import Access, Chain, Context, Refusal, Request, Response, Route
from plugins.receivers.http.answers import check_credentials, context_headers, error_body, make_context, refusal_answer
from plugins.receivers.http.body import TooSlow, closes, decompress, too_large
from plugins.receivers.http.request_log import TURNED_AWAY, RequestLog
from plugins.receivers.http.traffic import UNMATCHED, Traffic

PAGE_BODY_BYTES = 64 * 1024
"""Nothing but a push has much to say, and Quart keeps a body in memory before anybody is asked who it is."""
_SCOPES = {Access.KEY: None, Access.INGEST: "ingest", Access.ADMIN: "admin"}


def make_pages(
    routes: Sequence[Route],
    chain: Chain,
    traffic: Traffic,
    max_request_size: int,
    body_timeout: float,
    request_log: RequestLog,
) -> quart.Quart:
    """An application that serves these routes, authorised by `chain`, with errors in the form of docs/api.md.

    A body may have `PAGE_BODY_BYTES`, or `max_request_size` if that is less, and take `body_timeout` seconds to arrive.
    """
    app = quart.Quart("metrics-service", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = min(max_request_size, PAGE_BODY_BYTES)
    app.config["BODY_TIMEOUT"] = body_timeout
    app.config["REQUEST_LOG"] = request_log
    app.url_map.merge_slashes = False  # "/health//live" is another path, not a redirect
    for route in routes:
        path = route.path.replace("{", "<").replace("}", ">")
        name = f"{route.method} {route.path}".replace(".", "_")
        app.add_url_rule(
            path,
            name,
            _view(route, chain),
            methods=[route.method],
            provide_automatic_options=False,
            merge_slashes=False,
        )
    app.before_request(_remember_context)
    app.after_request(_add_context)
    app.after_request(_counted(traffic))
    app.register_error_handler(Refusal, _refused)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    return app


def _view(route: Route, chain: Chain) -> Any:
    async def view(**path_parameters: str) -> quart.Response:
        context: Context = quart.g.context
        context.scope, context.cost = _SCOPES.get(route.access), route.cost
        if route.access is not Access.PUBLIC:
            await chain.admit(context)
        parameters = {**quart.request.args.to_dict(), **path_parameters}
        answer = await route.handler(Request(parameters, await _body(), context))
        response = _response(_content(answer), answer.status, answer.content_type)
        response.headers.extend(answer.headers)
        return response

    return view


async def _body() -> bytes:
    limit, seconds = quart.current_app.config["MAX_CONTENT_LENGTH"], quart.current_app.config["BODY_TIMEOUT"]
    try:
        body = await quart.request.get_data(as_text=False)
    except RequestEntityTooLarge:
        raise too_large(limit) from None
    except RequestTimeout:
        raise TooSlow(seconds) from None
    assert isinstance(body, bytes)  # not as text
    encoding = quart.request.headers.get("Content-Encoding")
    return body if encoding is None else await decompress(body, encoding.encode("latin-1"), limit)


async def _remember_context() -> None:
    headers = {
        name.lower().encode(): value.encode("latin-1", "replace") for name, value in quart.request.headers.items()
    }
    quart.g.started = time.perf_counter()
    quart.g.headers = headers
    quart.g.context = make_context(headers, quart.request.remote_addr or "", scope=None)
    if quart.request.scope["path"].startswith("//"):  # the framework would take it for one slash
        quart.request.url_rule = None
        raise NotFound
    lines = list(quart.request.scope["headers"])
    check_credentials(dict(lines), lines)  # the framework has a header of its own among those above


def _counted(traffic: Traffic) -> Callable[[quart.Response], Awaitable[quart.Response]]:
    async def count(response: quart.Response) -> quart.Response:
        rule = quart.request.url_rule
        endpoint = UNMATCHED if rule is None else rule.rule.replace("<", "{").replace(">", "}")
        seconds = time.perf_counter() - quart.g.started
        traffic.count(quart.request.method, endpoint, response.status_code, seconds)
        return response

    return count


async def _add_context(response: quart.Response) -> quart.Response:
    for name, value in context_headers(quart.g.context):
        response.headers[name.decode()] = value.decode()
    return response


def _content(answer: Response) -> bytes:
    if answer.content_type == "application/json":
        return msgspec.json.encode(answer.body)
    return str(answer.body).encode()


def _response(content: bytes, status: int, content_type: str = "application/json") -> quart.Response:
    return quart.Response(content, status, content_type=content_type)


async def _refused(refusal: Refusal) -> quart.Response:
    status, content, headers = refusal_answer(refusal, quart.g.context)
    if closes(refusal, quart.g.headers):
        headers.append((b"connection", b"close"))
    response = _response(content, status)
    response.headers.extend({name.decode(): value.decode() for name, value in headers})
    _log_refusal(refusal, status, quart.g.context)
    return response


def _log_refusal(refusal: Refusal, status: int, context: Context) -> None:
    """Log a refused request, as a refused push is logged."""
    lines: RequestLog = quart.current_app.config["REQUEST_LOG"]
    if status in TURNED_AWAY and lines.is_due(quart.g.started):
        lines.write(
            "Refused request",
            {
                "request_id": context.request_id,
                "service": context.caller.service if context.caller else None,
                "method": quart.request.method,
                "path": quart.request.path,
                "status": status,
                "duration_ms": round((time.perf_counter() - quart.g.started) * 1000, 1),
                "reason": str(refusal),
                "peer": context.peer,
            },
        )


async def _http_error(error: HTTPException) -> quart.Response:
    """404, 405 and whatever else the framework answers by itself."""
    status = error.code or 500
    response = _response(error_body(status, error.name, quart.g.context.request_id), status)
    if status == 405:
        response.headers["Allow"] = dict(error.get_headers()).get("Allow", "")
    return response


async def _unexpected_error(error: Exception) -> quart.Response:
    request_id = quart.g.context.request_id
    quart.current_app.logger.error(
        "cannot serve %s: %s", quart.request.path, error, exc_info=error, extra={"request_id": request_id}
    )
    return _response(error_body(500, "Internal Server Error", request_id), 500)
