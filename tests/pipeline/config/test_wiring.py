"""Whether components fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.config.plugins import load, problems

COMPONENTS = """
receivers: {http: , push: , push/2: }
processors: {admit: , look: , decode: , keep: , keep/2: , look/off: {enabled: false}, keep/off: {enabled: false}}
exporters: {drop: , drop/2: , store: , drop/off: {enabled: false}}
connectors: {series: , loop: , loop/2: }
"""


def wrong(folder: Path, *pipelines: str, extra: str = "") -> list[str]:
    """What is wrong with these pipelines, each `id: {…}`, over the components above; without the file."""
    text = "service:\n  pipelines:\n" + "".join(f"    {pipeline}\n" for pipeline in pipelines)
    lines = problems(folder, COMPONENTS, text, extra)
    return [line.split(": ", 1)[1].removeprefix("service.pipelines.") for line in lines]


def one(receivers: str = "push", processors: str = "keep", exporters: str = "drop", id_: str = "events") -> str:
    """A pipeline of one line."""
    return f"{id_}: {{receivers: [{receivers}], processors: [{processors}], exporters: [{exporters}]}}"


@pytest.mark.parametrize(
    ("pipeline", "line"),
    [
        (
            one(exporters="dorp"),
            "events.exporters[0]: references exporter 'dorp', which is not configured (did you mean 'drop'?)",
        ),
        (
            one(receivers="zzz"),
            "events.receivers[0]: references receiver 'zzz', which is not configured "
            "(configured: http, loop, loop/2, push, push/2, series)",
        ),
        (one(processors="drop, keep"), "events.processors[0]: references processor 'drop', which is not configured"),
        (
            one(processors="decode, keep", id_="metrics"),
            "metrics.processors[0]: processor 'decode' does not take metrics (it takes events)",
        ),
        (
            one("http", "keep", id_="metrics"),
            "metrics.receivers[0]: receiver 'http' does not give metrics (it gives events)",
        ),
        (one(id_="traces"), "traces: must be named for its signal, events or metrics, or signal/name, got 'traces'"),
        (one(id_="events/"), "events/: must be named for its signal"),
        (one(receivers=""), "events.receivers: must name at least one receiver or connector"),
        (one(exporters=""), "events.exporters: must name at least one exporter or connector"),
        ("events: {processors: [keep], exporters: [drop]}", "events.receivers: must name at least one receiver"),
        (one(processors="look, look, keep"), "events.processors[1]: names 'look' twice (a second instance needs an id"),
        (one(exporters="drop, drop"), "events.exporters[1]: names 'drop' twice"),
        (one(processors=""), "events.processors: must end with an enabled buffer, which keeps the data until"),
        (one(processors="look"), "events.processors: must end with an enabled buffer"),
        (one(processors="keep/off"), "events.processors: must end with an enabled buffer"),
        (one(processors="keep, look"), "events.processors[0]: 'keep' must be the last processor"),
        (one(processors="keep, keep/2"), "events.processors[0]: 'keep' must be the last processor"),
        (one("http"), "events.processors: must hold a decoder, since receiver 'http' gives documents (known: decode)"),
        (
            one("http", "admit, look, decode, keep"),
            "events.processors[1]: 'look' looks at batches (must come behind 'decode', which decodes them)",
        ),
        (one("push: 3"), "events.receivers[0]: must be text, got a mapping"),
        ("events: [push]", "events: must be a mapping, got a list"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_one_problem(tmp_path: Path, pipeline: str, line: str) -> None:
    found = wrong(tmp_path, pipeline, one("push/2", id_="metrics/good"))
    assert [each for each in found if each.startswith(line)]
    assert len(found) == 1


@pytest.mark.parametrize(
    "pipeline",
    [
        one(),
        one("http", "admit, decode, look, keep"),
        one("http, push", "look/off, decode, keep"),
        one(processors="look, keep, keep/off"),
        one(id_="metrics/name-1"),
    ],
)
def test_a_pipeline_that_fits_is_no_problem(tmp_path: Path, pipeline: str) -> None:
    assert wrong(tmp_path, pipeline) == []


def test_a_receiver_feeds_one_pipeline(tmp_path: Path) -> None:
    assert wrong(tmp_path, one(), one(id_="metrics")) == [
        "metrics.receivers[0]: receiver 'push' already feeds the pipeline 'events' "
        "(a receiver feeds one pipeline; fan out with exporters and connectors)"
    ]


def test_a_connector_feeds_one_pipeline(tmp_path: Path) -> None:
    pipelines = (one(exporters="series"), one("series", id_="metrics"), one("series", id_="metrics/2"))
    assert wrong(tmp_path, *pipelines) == [
        "metrics/2.receivers[0]: connector 'series' already feeds the pipeline 'metrics' "
        "(a connector feeds one pipeline; fan out with exporters and connectors)"
    ]


def test_an_exporter_may_serve_several_pipelines(tmp_path: Path) -> None:
    assert wrong(tmp_path, one(), one("push/2", id_="metrics")) == []


def test_a_connector_takes_on_one_side_and_gives_on_the_other(tmp_path: Path) -> None:
    assert wrong(tmp_path, one(exporters="series"), one("series", id_="metrics")) == []
    assert wrong(tmp_path, one(exporters="series"), one("series", id_="events/2")) == [
        "events/2.receivers[0]: connector 'series' does not give events (it gives metrics)"
    ]
    assert wrong(tmp_path, one(exporters="series", id_="metrics"), one("series", id_="metrics/2")) == [
        "metrics.exporters[0]: connector 'series' does not take metrics (it takes events)"
    ]


def test_a_connector_is_used_on_both_sides(tmp_path: Path) -> None:
    assert wrong(tmp_path, one(exporters="drop, series"), one("push/2, loop", id_="metrics")) == [
        "events.exporters[1]: connector 'series' leads nowhere (must also be among the receivers of a pipeline)",
        "metrics.receivers[1]: connector 'loop' is fed by nothing (must also be among the exporters of a pipeline)",
    ]


def test_a_circle_is_named(tmp_path: Path) -> None:
    pipelines = [one(exporters="loop"), one("loop", exporters="loop/2", id_="events/2")]
    back = one("loop/2", exporters="drop, loop", id_="events/3")
    assert wrong(tmp_path, *pipelines, back) == [
        "events/2: data would go round in a circle: events/2 -> loop/2 -> events/3 -> loop -> events/2"
    ]


def test_a_connector_into_its_own_pipeline_is_a_circle(tmp_path: Path) -> None:
    assert wrong(tmp_path, one("push, loop", exporters="drop, loop")) == [
        "events: data would go round in a circle: events -> loop -> events"
    ]


def test_two_ways_to_one_pipeline_are_no_circle(tmp_path: Path) -> None:
    middle = one("loop", exporters="loop/2", id_="events/2")
    assert (
        wrong(
            tmp_path, one(exporters="loop, series"), middle, one("loop/2", id_="events/3"), one("series", id_="metrics")
        )
        == []
    )


def test_an_id_must_not_be_two_things_in_one_list(tmp_path: Path) -> None:
    both = "events.receivers[0]: 'series' is both a receiver and a connector (rename one)"
    assert both in wrong(tmp_path, one("series"), extra="receivers: {series: }")


def test_a_component_of_an_unknown_type_is_one_problem(tmp_path: Path) -> None:
    for pipeline in (one("zz"), one(processors="zz"), one("http", "zz, keep"), one(exporters="zz")):
        found = wrong(tmp_path, pipeline, extra="receivers: {zz: }\nprocessors: {zz: }\nexporters: {zz: }")
        assert len(found) == 3
        assert all("unknown type" in line for line in found)


@pytest.mark.parametrize("text", ["", "service:", "service: {pipelines: }", "service: {pipelines: {}}"])
def test_there_must_be_a_pipeline(tmp_path: Path, text: str) -> None:
    (line,) = problems(tmp_path, COMPONENTS, text)
    assert line.endswith("service.pipelines: must hold a pipeline")


def test_pipelines_come_upstream_first(tmp_path: Path) -> None:
    pipelines = [
        one("loop/2", id_="events/c"),
        one("loop", exporters="loop/2", id_="events/b"),
        one(exporters="loop", id_="events/a"),
    ]
    text = "service:\n  pipelines:\n" + "".join(
        f"    {pipeline}\n" for pipeline in [one("push/2", id_="metrics"), *pipelines]
    )
    assert [pipeline.id for pipeline in load(tmp_path, COMPONENTS, text).pipelines] == [
        "metrics",
        "events/a",
        "events/b",
        "events/c",
    ]
