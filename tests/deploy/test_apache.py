"""Apache in front of the service, with the site that we ship."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.deploy.behind import PUSH, BehindAProxy, ciphers_that_there_are, is_ours, pushes_with_upgrade
from tests.deploy.proxies import ROOT, Site, apache, free_ports, service
from tests.faults.raw import push, status

pytestmark = pytest.mark.deploy

SITE = "deploy/apache/metrics-service.conf"


def modules() -> list[str]:
    """Those that the page tells to enable, which are those that the site names."""
    found = re.search(r"^# Modules: (.*)$", (ROOT / SITE).read_text(encoding="utf-8"), re.MULTILINE)
    told = re.search(
        r"^sudo a2enmod (.*)$", (ROOT / "docs/deploy/proxies.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found
    assert told
    assert found[1] == told[1]
    return found[1].split()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Apache in front of a service, for all tests that break neither."""
    folder, ports = tmp_path_factory.mktemp("apache"), free_ports()
    with service(folder, ports), apache(folder, ports, modules()) as running:
        yield running


@pytest.fixture(scope="module")
def slow_body(site: Site) -> Iterator[Future[bytes]]:
    """What the beginning of a push is answered, while other tests run."""
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(site.exchange, push()[:-10])


@pytest.mark.usefixtures("slow_body")  # from the first test on: it takes ten seconds
class TestApache(BehindAProxy):
    """What holds behind every proxy, and what only Apache does."""

    access_log = "metrics-service.log"

    def test_a_slow_body_is_given_up_after_the_services_ten_seconds(self, slow_body: Future[bytes]) -> None:
        answer = slow_body.result()
        assert status(answer) == 408
        assert b'"status_code":408' in answer


def test_every_cipher_is_one() -> None:
    assert ciphers_that_there_are(SITE, "SSLCipherSuite")


def test_a_restart_of_the_service_costs_the_requests_in_it_alone(tmp_path: Path) -> None:
    ports = free_ports()
    with apache(tmp_path, ports, modules()) as site, site.client() as client:
        for _ in range(2):
            with service(tmp_path, ports):
                assert client.get("/health").status_code == 200
                assert client.post("/metrics", json=PUSH).status_code == 200
            answer = client.get("/health")
            assert answer.status_code == 503
            assert is_ours(answer)
            assert answer.headers["retry-after"] == "1"


def test_upgrade_is_ignored_by_uvicorn_too(tmp_path: Path) -> None:
    ports = free_ports()
    with service(tmp_path, ports, METRICS_SERVER="uvicorn"), apache(tmp_path, ports, modules()) as site:
        pushes_with_upgrade(site)
