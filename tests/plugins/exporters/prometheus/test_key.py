"""The key of whoever scrapes: from a variable, never empty, and not too short without a word."""

from __future__ import annotations

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
