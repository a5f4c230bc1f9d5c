"""The key of whoever scrapes: from a variable, never empty, and not too short without a word."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from pipeline import Secret
from pipeline.config.load import load_configuration
from pipeline.errors import ConfigError
from pipeline.registry import load_registry
from plugins.exporters.prometheus.exporter import PrometheusConfig
from tests.leaks import secret
from tests.plugins.exporters.prometheus.otlp import Exposed
from tests.running import environment, running

LONG = secret("a-key-for-who-scrapes-that-is-long-enough")
WEAK = "exporters.prometheus.key is shorter than 32 characters: it works, and it may be guessed"


def problems(folder: Path, key: str) -> list[str]:
    """What is wrong with the shipped configuration with this key."""
    with pytest.raises(ConfigError) as caught:
        load_configuration(
            ["development"], [f"exporters.prometheus.key={key}"], environment(folder), load_registry(installed=False)
        )
    return [str(problem) for problem in caught.value.problems]


def test_an_empty_key_is_a_mistake_and_opens_nothing(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, '""')
    what = "is empty (must be a key, or left out so that anybody may scrape)"
    assert problem == f"--set: exporters.prometheus.key: {what}"
    assert problems(tmp_path, '" "'), "a space is no key either"


def test_so_is_an_empty_file_that_should_hold_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    (problem,) = problems(tmp_path, f"${{file:{tmp_path}/key}}")
    assert problem.endswith(f"exporters.prometheus.key: the file '{tmp_path}/key' is empty (must hold the value)")


@pytest.mark.anyio
async def test_a_variable_sets_it(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_PROMETHEUS_KEY=LONG) as service:
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            await service.scrape()
        assert await service.scrape(**{"X-API-Key": LONG})


@pytest.mark.anyio
@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
@pytest.mark.parametrize("name", ["X-API-Key", "Authorization"])
async def test_a_header_that_comes_twice_is_refused(tmp_path: Path, server: str, name: str) -> None:
    value = LONG if name == "X-API-Key" else f"Bearer {LONG}"
    async with running(tmp_path, f"exporters.prometheus.server={server}", METRICS_PROMETHEUS_KEY=LONG) as service:
        for other in ("guess", value):
            answer = await service.client.get(service.scraped, headers=[(name, other), (name, value)])
            assert (answer.status_code, answer.text) == (400, f"{name} must not be there twice\n")


@pytest.mark.anyio
async def test_guesses_are_limited_by_address_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    overrides = ("exporters.prometheus.max_failures=3", "exporters.prometheus.trusted_proxies=127.0.0.1")
    async with running(tmp_path, *overrides, METRICS_PROMETHEUS_KEY=LONG) as service:

        async def guess(key: str, peer: str = "198.51.100.7") -> int:
            headers = {"X-API-Key": key, "X-Forwarded-For": peer}
            return (await service.client.get(service.scraped, headers=headers)).status_code

        service.client.headers.pop("X-API-Key")
        assert [await guess(f"guess {number}") for number in range(5)] == [401] * 3 + [429] * 2
        assert await guess("guess", "198.51.100.8") == 401, "another address is not limited"
        assert await guess(LONG) == 200, "the right key is still accepted"
        assert (await service.client.get(service.scraped)).status_code == 401
    lines = [vars(each) for each in caplog.get_records("call") if each.getMessage() == "Refused scrape"]
    assert [(line["status"], line["peer"]) for line in lines[:5]] == [(401, "198.51.100.7")] * 3 + [
        (429, "198.51.100.7")
    ] * 2


@pytest.mark.anyio
async def test_without_the_variable_there_is_none(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_PROMETHEUS_KEY="") as service:
        assert await service.scrape()


@pytest.mark.anyio
async def test_a_short_one_works_with_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    exposed = Exposed(key="a" * 31)
    exporter = exposed.exporter
    await exporter.start()
    assert caplog.messages == [WEAK]
    for key, warnings in (("a" * 31, 1), ("b" * 31, 2), ("b" * 32, 2)):
        config = PrometheusConfig(key=Secret(key))
        (await exporter.reload(config, exposed.host))()
        exporter.config = config
        assert caplog.messages == [WEAK] * warnings, key
