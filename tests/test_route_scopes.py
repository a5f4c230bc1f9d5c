"""Every route that the running service really has was declared with who may call it, and lets in nobody else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import quart

from pipeline import Access
from plugins.receivers.http import pages
from plugins.receivers.http.pages import make_pages
from tests.beside import World, beside
from tests.leaks import secret
from tests.running import Running, running

pytestmark = pytest.mark.anyio

PUBLIC, KEY, INGEST, ADMIN = Access
DECLARED = {
    "GET /": PUBLIC,
    "GET /health": PUBLIC,
    "GET /health/live": PUBLIC,
    "GET /health/ready": PUBLIC,
    "GET /openapi.json": PUBLIC,
    "GET /docs": PUBLIC,
    "POST /metrics": INGEST,
    "POST /flush": KEY,
    "GET /rate-limit": KEY,
    "GET /admin/database/size": ADMIN,
    "GET /admin/database/stats": ADMIN,
    "GET /admin/retention/policies": ADMIN,
    "GET /admin/retention/preview": ADMIN,
    "POST /admin/retention/cleanup": ADMIN,
    "PUT /admin/retention/policies/{table}": ADMIN,
}
"""Who may call what. A new route belongs here, too: written a second time, so that nobody opens one by mistake."""
OTHERS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[quart.Quart]:
    """The applications that receivers serve, whose tables say what is really reached."""
    made: list[quart.Quart] = []

    def kept(*given: Any) -> quart.Quart:
        made.append(make_pages(*given))
        return made[-1]

    monkeypatch.setattr("plugins.receivers.http.make_pages", kept)
    return made


def table(app: quart.Quart) -> Iterable[tuple[str, str]]:
    """Method and path of every rule; a GET brings a HEAD."""
    for rule in app.url_map.iter_rules():
        for method in rule.methods or ():
            yield method, rule.rule.replace("<", "{").replace(">", "}")


async def faults(service: Running, app: quart.Quart) -> list[str]:
    """What is wrong with the routes of the service: one that nobody declared, and one that lets the wrong callers in."""
    described = (await service.client.get("/openapi.json")).json()["paths"]
    ingest, admin = await service.make_key("ingest"), await service.make_key("admin")
    good: dict[Access, list[str]] = {PUBLIC: [ingest, admin], KEY: [ingest, admin], INGEST: [ingest], ADMIN: [admin]}
    found = []
    for method, path in table(app):
        access = DECLARED.get(f"{'GET' if method == 'HEAD' else method} {path}")
        if access is None:
            found.append(f"{method} {path}: not declared")
            continue
        operation = described[path]["get" if method == "HEAD" else method.lower()]
        if ("security" in operation) != (access is not PUBLIC):
            found.append(f"{method} {path}: described as another's")
        for key in ("", "a-key-that-nobody-made", ingest, admin):
            status = await ask(service, method, path, key)
            expected = 403 if key in (ingest, admin) else 401
            if access is PUBLIC or key in good[access]:
                if status in (401, 403, 404, 405) or status >= 500:
                    found.append(f"{method} {path}: {status} for a key that may")
            elif status != expected:
                found.append(f"{method} {path}: {status} for a key that may not")
    return found


async def ask(service: Running, method: str, path: str, key: str = "") -> int:
    """The status of a call with that key, or without one."""
    headers = {"X-API-Key": key} if key else {}
    del service.client.headers["X-API-Key"]
    try:
        answer = await service.client.request(method, path.replace("{table}", "metrics"), headers=headers)
        return answer.status_code
    finally:
        service.client.headers["X-API-Key"] = "a-key-that-nobody-made"


async def test_every_route_lets_in_whom_it_was_declared_for(tmp_path: Path, mounted: list[quart.Quart]) -> None:
    async with running(tmp_path) as service:
        (app,) = mounted
        assert await faults(service, app) == []
        assert {f"{method} {path}" for method, path in table(app) if method != "HEAD"} == set(DECLARED)


async def test_nothing_else_is_reached_by_any_method(tmp_path: Path, mounted: list[quart.Quart]) -> None:
    async with running(tmp_path) as service:
        (app,) = mounted
        known = set(table(app))
        for path in {path for _, path in known}:
            for method in (each for each in OTHERS if (each, path) not in known):
                assert await ask(service, method, path) == 405, (method, path)


async def test_a_scrape_needs_its_key_and_its_port_has_nothing_else(tmp_path: Path) -> None:
    key = secret("the-key-of-whoever-scrapes-this")
    async with running(tmp_path, f"exporters.prometheus.key={key}") as service:
        del service.client.headers["X-API-Key"]
        port = service.scraped.removesuffix("/metrics")
        scraping = {"Authorization": f"Bearer {key}"}
        foreign = {"X-API-Key": await service.make_key("admin", "ingest")}
        for method in OTHERS:
            for path in {path.partition(" ")[2] for path in DECLARED} - {"/metrics"}:
                answer = await service.client.request(method, port + path, headers=scraping)
                assert answer.status_code == 404, (method, path)
            good = await service.client.request(method, service.scraped, headers=scraping)
            assert good.status_code == (200 if method in ("GET", "HEAD") else 405)
            if good.status_code == 200:
                for headers in ({}, foreign):
                    assert (await service.client.request(method, service.scraped, headers=headers)).status_code == 401


async def test_a_route_that_nobody_declared_is_found(tmp_path: Path, mounted: list[quart.Quart]) -> None:
    """The negative control of the table."""
    async with beside(tmp_path, World()) as service:
        found = await faults(service, mounted[0])
        assert set(found) == {"GET /beside: not declared", "HEAD /beside: not declared"}


@pytest.mark.parametrize(
    ("access", "scope", "expected"),
    [
        (ADMIN, None, ["GET /admin/database/size: 200 for a key that may not"]),
        (KEY, "admin", ["POST /flush: 403 for a key that may"]),
    ],
)
async def test_a_receiver_that_asks_for_another_scope_is_found(
    tmp_path: Path,
    mounted: list[quart.Quart],
    monkeypatch: pytest.MonkeyPatch,
    access: Access,
    scope: str | None,
    expected: list[str],
) -> None:
    """The negative control of the calls."""
    monkeypatch.setitem(pages._SCOPES, access, scope)
    async with running(tmp_path) as service:
        assert set(expected) <= set(await faults(service, mounted[0]))
