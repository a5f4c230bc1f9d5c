"""nginx in front of the service, with the site that we ship."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.behind import (
    PUSH,
    BehindAProxy,
    ciphers_that_there_are,
    has_security_headers,
    is_ours,
    pushes_with_upgrade,
)
from tests.deploy.proxies import ROOT, Ports, Site, free_ports, nginx, replaced, service
from tests.faults.raw import push
from tests.scrapes import total

pytestmark = pytest.mark.deploy

SITE = "deploy/nginx/metrics-service.conf"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """nginx in front of a service, for all tests that break neither."""
    folder, ports = tmp_path_factory.mktemp("nginx"), free_ports()
    with service(folder, ports), nginx(folder, ports) as running:
        yield running


class TestNginx(BehindAProxy):
    """What holds behind every proxy, and what only nginx does."""

    def test_a_header_that_is_too_large_is_refused_as_the_service_does(self, site: Site) -> None:
        with site.client() as client:
            answer = client.get("/health", headers={"X": "y" * 60_000})
            assert answer.status_code == 431
            assert is_ours(answer)


def test_every_cipher_is_one() -> None:
    assert ciphers_that_there_are(SITE, "ssl_ciphers")


SMALL = {"burst=30000": "burst=3", "rate=500r/s": "rate=1r/m", "metrics_connections 256": "metrics_connections 1"}


def test_the_requests_and_connections_of_an_address_are_limited_with_answers_of_our_form(tmp_path: Path) -> None:
    (tmp_path / "small.conf").write_text(replaced((ROOT / SITE).read_text(encoding="utf-8"), SMALL))
    ports = free_ports()
    with service(tmp_path, ports), nginx(tmp_path, ports, tmp_path / "small.conf") as site:
        with site.client() as client:
            answers = [client.post("/metrics", json=PUSH) for _ in range(6)]
        with site.client("127.0.0.3") as client, site.connected("127.0.0.3") as another:
            another.sendall(push()[:-1])
            answers.append(client.get("/health"))
        with site.client("127.0.0.4") as client:
            assert client.get("/health").status_code == 200
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2 + [503]
    for refused in answers[4:]:
        assert is_ours(refused)
        assert "from this address" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "1"
        assert has_security_headers(refused)


def connections(ports: Ports) -> float:
    """How many the service has open on its port."""
    text = httpx.get(f"http://127.0.0.1:{ports.series}/metrics").text
    return total(text, "listener_connections", component="receiver/http")


def test_a_body_reaches_the_service_when_it_is_complete(tmp_path: Path) -> None:
    whole, ports = push(json.dumps(PUSH).encode()), free_ports()
    here = ("127.0.0.1", ports.service)
    with service(tmp_path, ports), nginx(tmp_path, ports) as site, site.connected() as slow, site.client() as client:
        slow.sendall(whole[:-10])
        assert client.get("/health").status_code == 200
        assert connections(ports) <= 1, "that of the health"
        with socket.create_connection(here) as one, socket.create_connection(here) as another:
            one.sendall(whole[:-10])
            another.sendall(whole[:-10])
            assert connections(ports) >= 2, "the control"
        slow.sendall(whole[-10:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")


def test_all_clients_are_one_to_a_service_that_trusts_no_proxy(tmp_path: Path) -> None:
    """The control of what the others say of addresses."""
    ports = free_ports()
    with service(tmp_path, ports, METRICS_TRUSTED_PROXIES=""), nginx(tmp_path, ports) as site:
        for source, expected in [("127.0.0.3", 429), ("127.0.0.4", 429)]:
            with site.client(source) as stranger:
                for number in range(21):
                    answer = stranger.get("/rate-limit", headers={"X-API-Key": f"no key of ours {number}"})
            assert answer.status_code == expected


def test_a_restart_of_the_service_costs_the_requests_in_it_alone(tmp_path: Path) -> None:
    ports = free_ports()
    with nginx(tmp_path, ports) as site, site.client() as client:
        for _ in range(2):
            with service(tmp_path, ports):
                assert client.get("/health").status_code == 200
                assert client.post("/metrics", json=PUSH).status_code == 200
            answer = client.get("/health")
            assert answer.status_code == 502
            assert is_ours(answer)
            assert answer.headers["retry-after"] == "1"


def test_upgrade_is_ignored_by_uvicorn_too(tmp_path: Path) -> None:
    ports = free_ports()
    with service(tmp_path, ports, METRICS_SERVER="uvicorn"), nginx(tmp_path, ports) as site:
        pushes_with_upgrade(site)
