"""Extensions' interfaces, and ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.config.plugins import GRAPH, load, problems

STORE = GRAPH.replace("drop", "store")
EXTENSIONS = "extensions: {wood: , wood/2: , steel: , index: , read: , wood/off: {enabled: false}}\n"
NOBODY = "requires Shelf, which no enabled extension in service.extensions offers (known to offer it: steel, wood)"


def wrong(folder: Path, graph: str, extensions: str) -> list[str]:
    """What is wrong with these extensions, without the file."""
    lines = problems(folder, graph, f"{EXTENSIONS}service: {{extensions: [{extensions}]}}")
    return [line.split(": ", 1)[1] for line in lines]


def test_what_a_component_requires_must_be_offered(tmp_path: Path) -> None:
    assert wrong(tmp_path, STORE, "wood") == []
    assert wrong(tmp_path, STORE, "") == [f"exporters.store: {NOBODY}"]
    assert wrong(tmp_path, STORE, "wood/off") == [f"exporters.store: {NOBODY}"]
    assert wrong(tmp_path, GRAPH, "") == []


def test_what_an_extension_requires_must_be_offered_before_it_starts(tmp_path: Path) -> None:
    assert wrong(tmp_path, GRAPH, "wood, index") == []
    assert wrong(tmp_path, GRAPH, "index") == [f"extensions.index: {NOBODY}"]
    assert wrong(tmp_path, GRAPH, "index, wood") == [
        "service.extensions[0]: 'index' uses Shelf (must come behind 'wood', which offers it)"
    ]


def test_what_an_extension_uses_may_be_offered_before_it_starts(tmp_path: Path) -> None:
    assert wrong(tmp_path, GRAPH, "read") == []
    assert wrong(tmp_path, GRAPH, "wood, read") == []
    assert wrong(tmp_path, GRAPH, "read, wood") == [
        "service.extensions[0]: 'read' uses Shelf (must come behind 'wood', which offers it)"
    ]
    assert wrong(tmp_path, GRAPH, "wood, steel, read") == [
        "service.extensions[1]: 'steel' offers Shelf, as 'wood' does (must be one)"
    ]


def test_what_a_disabled_component_requires_is_not_asked_for(tmp_path: Path) -> None:
    graph = STORE.replace("exporters: [store]", "exporters: [store, drop]").replace(
        "{store: }", "{store: {enabled: no}, drop: }"
    )
    assert wrong(tmp_path, graph, "") == []


@pytest.mark.parametrize("second", ["steel", "wood/2"])
def test_one_extension_offers_what_is_required(tmp_path: Path, second: str) -> None:
    assert wrong(tmp_path, STORE, f"wood, {second}") == [
        f"service.extensions[1]: {second!r} offers Shelf, as 'wood' does (must be one)"
    ]
    assert wrong(tmp_path, GRAPH, f"wood, {second}") == []


def test_an_extension_that_is_not_configured_is_one_problem(tmp_path: Path) -> None:
    assert wrong(tmp_path, STORE, "wod") == [
        "service.extensions[0]: references extension 'wod', which is not configured (did you mean 'wood'?)"
    ]


def test_an_extension_is_named_once(tmp_path: Path) -> None:
    assert wrong(tmp_path, STORE, "wood, wood") == ["service.extensions[1]: names 'wood' twice"]


def test_extensions_come_as_they_are_listed(tmp_path: Path) -> None:
    found = load(tmp_path, GRAPH, f"{EXTENSIONS}service: {{extensions: [steel, wood/off, wood]}}")
    assert [spec.id for spec in found.extensions] == ["steel", "wood"]


def ports(folder: Path, http: str, push: str, receivers: str = "http, push") -> list[str]:
    """What is wrong with these listeners: one that is a component's options, one inside them."""
    text = f"""
receivers:
  http: {{{http}}}
  push:
    listener: {{{push}}}
processors: {{decode: }}
service: {{pipelines: {{events: {{receivers: [{receivers}], processors: [decode, keep]}}}}}}
"""
    return problems(folder, GRAPH, text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("host: 127.0.0.1, port: 80", "host: 127.0.0.1, port: 80"),
        ("port: 80", "host: 127.0.0.1, port: 80"),
        ("host: '::1', port: 80", "host: '::', port: 80"),
    ],
)
def test_two_listeners_cannot_have_one_port(tmp_path: Path, one: str, other: str) -> None:
    (line,) = ports(tmp_path, one, other)
    assert line.startswith("1.yaml:5: receivers.push.listener.port: port 80 of ")
    assert line.endswith("is already taken by receivers.http")


@pytest.mark.parametrize(
    ("one", "other"),
    [("port: 80", "port: 81"), ("port: 0", "port: 0"), ("host: 127.0.0.1, port: 80", "host: 127.0.0.2, port: 80")],
)
def test_listeners_that_do_not_meet_are_fine(tmp_path: Path, one: str, other: str) -> None:
    assert ports(tmp_path, one, other) == []


def test_a_listener_that_does_not_run_takes_no_port(tmp_path: Path) -> None:
    assert ports(tmp_path, "port: 80, enabled: false", "port: 80") == []
    assert ports(tmp_path, "port: 80", "port: 80", receivers="http") == []
