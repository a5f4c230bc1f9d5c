"""The printed configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.component import Kind
from pipeline.config.load import load_configuration
from pipeline.config.show import print_config
from tests.pipeline.config.plugins import GRAPH, SendConfig, load, registry

SEND = """
exporters:
  send:
    endpoint: ${env:ENDPOINT:-http://localhost}
    token: ${env:TOKEN:-}
    password: literal-hush
    headers: {authorization: "Bearer ${env:TOKEN}"}
    timeout: 1m
    tags: [a, "${env:TAG:-b}"]
    labels: [z, 1, a]
    limit: ${env:LIMIT:-}
    anything: [{a: "on"}, []]
"""


def lines(folder: Path, *, overrides: tuple[str, ...] = (), **environ: str) -> list[str]:
    """The printed lines, with files relative to the folder and without indentation."""
    text = print_config(load(folder, GRAPH, SEND, overrides=overrides, environ=environ))
    return [line.strip() for line in text.replace(f"{folder}/", "").splitlines()]


def test_every_value_says_where_it_came_from(tmp_path: Path) -> None:
    found = lines(tmp_path, overrides=("exporters.send.note=told",), TOKEN="hush", TAG="c")
    for line in (
        'endpoint: "http://localhost"  # 1.yaml:4',
        'token: "***"  # env TOKEN, 1.yaml:5',
        "timeout: 60  # 1.yaml:8",
        "tags: [a, c]  # env TAG, 1.yaml:9",
        'labels: ["1", a, z]  # 1.yaml:10',
        "limit: null  # 1.yaml:11 (empty)",
        "note: told  # --set",
        "size: 1000  # default",
        "attempts: 3  # default",
        "exporters: [drop]  # 0.yaml:7",
        "level: info  # default",
    ):
        assert line in found


def test_what_is_empty_is_printed_as_such(tmp_path: Path) -> None:
    found = print_config(load(tmp_path, GRAPH, "exporters: {send: {endpoint: ''}}"))
    assert all(f"    {line}  # " in found for line in ('endpoint: ""', "headers: {}", "tags: []"))


@pytest.mark.parametrize("token", ["hush", "hush: #\n'\"", "***hush"])
def test_no_secret_is_printed(tmp_path: Path, token: str) -> None:
    found = "\n".join(lines(tmp_path, TOKEN=token))
    assert "hush" not in found
    assert 'authorization: "***"  # env TOKEN, 1.yaml:7' in found


def test_what_is_printed_means_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    first = load(tmp_path, GRAPH, SEND, environ={"TOKEN": "***"}, overrides=["exporters.send.password='***'"])
    path = tmp_path / "printed.yaml"
    path.write_text(print_config(first).replace("Bearer ", ""), encoding="utf-8")
    again = load_configuration([str(path)], [], {}, registry())
    sent, resent = (one.configured[Kind.EXPORTER, "send"].config for one in (first, again))
    assert isinstance(sent, SendConfig)
    assert sent.model_copy(update={"headers": resent.model_dump()["headers"]}) == resent
    assert again.pipelines == first.pipelines
    assert again.settings == first.settings


def test_disabled_and_unused_components_are_printed_too(tmp_path: Path) -> None:
    text = print_config(load(tmp_path, GRAPH, "exporters: {drop/off: {enabled: false}}"))
    assert yaml.safe_load(text)["exporters"]["drop/off"] == {"enabled": False}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_any_text_is_printed_so_that_it_is_read_again(tmp_path: Path, value: str) -> None:
    environ = {"ENDPOINT": value or "x", "TOKEN": "hush"}
    path = tmp_path / "printed.yaml"
    path.write_bytes(print_config(load(tmp_path, GRAPH, SEND, environ=environ)).encode())
    config = load_configuration([str(path)], [], {}, registry()).configured[Kind.EXPORTER, "send"].config
    assert isinstance(config, SendConfig)
    assert config.endpoint == environ["ENDPOINT"]
