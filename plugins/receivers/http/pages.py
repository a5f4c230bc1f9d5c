"""Everything on the port that is not hot: the routes that components offer, as a Quart application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import quart
from werkzeug.exceptions import HTTPException

from pipeline import Access, Chain, Context, Refusal, Request, Response, Route
from plugins.receivers.http.answers import context_headers, error_body, make_context, refusal_answer

_SCOPES = {Access.KEY: None, Access.INGEST: "ingest", Access.ADMIN: "admin"}


def make_pages(routes: Sequence[Route], chain: Chain, max_request_size: int) -> quart.Quart:
    """An application that serves these routes, authorised by `chain`, with errors in the form of api.md."""
    app = quart.Quart("metrics-service", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_request_size
    app.json.sort_keys = False  # type: ignore[attr-defined]
    for route in routes:
        path = route.path.replace("{", "<").replace("}", ">")
        name = f"{route.method} {route.path}".replace(".", "_")
        app.add_url_rule(path, name, _view(route, chain), methods=[route.method])
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    return app


def _view(route: Route, chain: Chain) -> Any:
    async def view(**path_parameters: str) -> quart.Response:
        context = _context(route)
        try:
            if route.access is not Access.PUBLIC:
                await chain.admit(context)
            parameters = {**quart.request.args.to_dict(), **path_parameters}
            body = await quart.request.get_data(as_text=False)
            answer = await route.handler(Request(parameters, body, context))
        except Refusal as refusal:
            status, content, headers = refusal_answer(refusal, context)
            return _response(content, status, "application/json", context, dict(headers))
        return _response(_content(answer), answer.status, answer.content_type, context, answer.headers)

    return view


def _context(route: Route) -> Context:
    headers = {
        name.lower().encode(): value.encode("latin-1", "replace") for name, value in quart.request.headers.items()
    }
    context = make_context(headers, quart.request.remote_addr or "", scope=_SCOPES.get(route.access), cost=route.cost)
    quart.g.request_id = context.request_id
    return context


def _content(answer: Response) -> bytes:
    if answer.content_type == "application/json":
        return msgspec.json.encode(answer.body)
    return str(answer.body).encode()


def _response(content: bytes, status: int, content_type: str, context: Context, headers: Any) -> quart.Response:
    response = quart.Response(content, status, content_type=content_type)
    for name, value in [*context_headers(context), *headers.items()]:
        response.headers[_text(name)] = _text(value)
    return response


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


async def _http_error(error: HTTPException) -> quart.Response:
    """404, 405, 413 and whatever else the framework answers by itself."""
    request_id = quart.g.get("request_id") or make_context({}, "", scope=None).request_id
    status = error.code or 500
    response = quart.Response(error_body(status, error.name, request_id), status, content_type="application/json")
    response.headers["X-Request-ID"] = request_id
    if status == 405:
        response.headers["Allow"] = dict(error.get_headers()).get("Allow", "")
    return response


async def _unexpected_error(error: Exception) -> quart.Response:
    quart.current_app.logger.error("cannot serve %s", quart.request.path, exc_info=error)
    request_id = quart.g.get("request_id") or make_context({}, "", scope=None).request_id
    return quart.Response(error_body(500, "Internal Server Error", request_id), 500, content_type="application/json")
