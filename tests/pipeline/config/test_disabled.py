"""What is left out when components are disabled."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.component import Kind
from tests.pipeline.config.plugins import load, problems

CHAIN = """
receivers: {push: , push/2: }
processors: {look: , keep: }
exporters: {drop: , drop/2: , drop/3: }
connectors: {loop: , loop/2: }
extensions: {wood: , steel: }
service:
  extensions: [wood, steel]
  pipelines:
    events/a: {receivers: [push], processors: [look, keep], exporters: [loop, drop]}
    events/b: {receivers: [loop], processors: [keep], exporters: [loop/2]}
    events/c: {receivers: [loop/2, push/2], processors: [keep], exporters: [drop/2, drop/3]}
"""


def running(folder: Path, *disabled: str) -> dict[str, tuple[str, str]]:
    """The pipelines that are left without these components: their receivers and exporters."""
    overrides = [f"{path}.enabled=false" for path in disabled]
    found = load(folder, CHAIN, overrides=overrides)
    return {one.id: (" ".join(one.receivers), " ".join(one.exporters)) for one in found.pipelines}


def test_all_of_it_runs_when_nothing_is_disabled(tmp_path: Path) -> None:
    assert running(tmp_path) == {
        "events/a": ("push", "loop drop"),
        "events/b": ("loop", "loop/2"),
        "events/c": ("loop/2 push/2", "drop/2 drop/3"),
    }


def test_a_disabled_component_is_left_out_of_its_pipelines(tmp_path: Path) -> None:
    found = load(tmp_path, CHAIN, overrides=["processors.look.enabled=no", "exporters.drop/2.enabled=off"])
    assert found.pipelines[0].processors == ("keep",)
    assert found.pipelines[2].exporters == ("drop/3",)
    assert not {(Kind.PROCESSOR, "look"), (Kind.EXPORTER, "drop/2")} & set(found.components)
    assert (Kind.PROCESSOR, "look") in found.configured


def test_a_pipeline_without_exporters_goes_and_with_it_all_that_only_feeds_it(tmp_path: Path) -> None:
    assert running(tmp_path, "exporters.drop/2", "exporters.drop/3") == {"events/a": ("push", "drop")}


def test_a_disabled_connector_is_gone_on_both_sides(tmp_path: Path) -> None:
    assert running(tmp_path, "connectors.loop/2") == {
        "events/a": ("push", "drop"),
        "events/c": ("push/2", "drop/2 drop/3"),
    }


def test_a_connector_whose_feeding_pipeline_is_gone_is_no_receiver(tmp_path: Path) -> None:
    assert running(tmp_path, "exporters.drop", "connectors.loop") == {
        "events/b": ("", "loop/2"),
        "events/c": ("loop/2 push/2", "drop/2 drop/3"),
    }


def test_a_pipeline_without_receivers_still_delivers(tmp_path: Path) -> None:
    assert running(tmp_path, "receivers.push")["events/a"] == ("", "loop drop")


def test_a_disabled_extension_does_not_run(tmp_path: Path) -> None:
    found = load(tmp_path, CHAIN, overrides=["extensions.wood.enabled=false"])
    assert [spec.id for spec in found.extensions] == ["steel"]


@pytest.mark.parametrize("value", ["${env:ON:-true}", "yes", "1"])
def test_enabled_is_a_boolean_like_any_other(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, CHAIN, overrides=[f"exporters.drop.enabled={value}"]).pipelines[0].exporters == (
        "loop",
        "drop",
    )


def test_something_must_be_left_to_run(tmp_path: Path) -> None:
    overrides = [f"exporters.{name}.enabled=false" for name in ("drop", "drop/2", "drop/3")]
    assert problems(tmp_path, CHAIN, overrides=overrides) == [
        "0.yaml:9: service.pipelines: nothing is left to run: every exporter is disabled"
    ]


def test_a_disabled_component_is_checked_all_the_same(tmp_path: Path) -> None:
    assert problems(tmp_path, CHAIN, overrides=["exporters.drop={enabled: false, x: 1}"]) == [
        "--set: exporters.drop.x: is not a known option (known: enabled)"
    ]
