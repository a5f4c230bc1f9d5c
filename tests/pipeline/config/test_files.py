"""Which files are read, how they merge, and `--set`."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline
from pipeline.component import Kind
from pipeline.config.files import SHIPPED, shipped_folder
from pipeline.config.load import load_configuration
from pipeline.errors import ConfigError
from tests.pipeline.config.plugins import GRAPH, SendConfig, load, problems, registry, sent, shown


def files(folder: Path, **texts: str) -> None:
    """Write these texts to `NAME.yaml`."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def send_options(folder: Path, *names: str) -> SendConfig:
    """What these files say of the exporter `send`, which is configured and not used."""
    found = load_configuration([str(folder / f"{name}.yaml") for name in names], [], {}, registry())
    config = found.configured[Kind.EXPORTER, "send"].config
    assert isinstance(config, SendConfig)
    return config


def trouble(folder: Path, *names: str, **environ: str) -> list[str]:
    """What is wrong with these files."""
    with pytest.raises(ConfigError) as caught:
        load_configuration([str(folder / name) for name in names], [], environ, registry())
    return [shown(problem, folder) for problem in caught.value.problems]


def test_mappings_merge_deeply_and_lists_and_scalars_are_replaced(tmp_path: Path) -> None:
    files(
        tmp_path,
        a=GRAPH + "extends: send.yaml",
        send="exporters: {send: {endpoint: one, tags: [a, b], retry: {attempts: 1, wait: 2}}}",
        b="exporters: {send: {endpoint: two, tags: [c], retry: {wait: 3}}}",
    )
    config = send_options(tmp_path, "a", "b")
    assert (config.endpoint, config.tags, config.retry.attempts, config.retry.wait) == ("two", ("c",), 1, 3)


def test_a_file_wins_over_what_it_extends_and_the_last_of_a_list_over_the_first(tmp_path: Path) -> None:
    files(
        tmp_path,
        top=f"extends: [a.yaml, b.yaml]\n{GRAPH}",
        a="exporters: {send: {endpoint: a, note: a, limit: 1}}",
        b="exporters: {send: {endpoint: b, note: b}}",
        own="extends: top.yaml\nexporters: {send: {endpoint: own}}",
    )
    config = send_options(tmp_path, "own")
    assert (config.endpoint, config.note, config.limit) == ("own", "b", 1)


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    files(tmp_path / "below", a="extends: b.yaml", b=f"{GRAPH}x: 1")
    files(tmp_path, top="extends: below/a.yaml")
    assert trouble(tmp_path, "top.yaml")[0].startswith("below/b.yaml:8: x: is not a known section")


def test_a_component_without_a_body_changes_nothing_below(tmp_path: Path) -> None:
    files(
        tmp_path,
        a=GRAPH,
        b="extends: [a.yaml, send.yaml]\nexporters: {send: , drop: }",
        send="exporters: {send: {endpoint: x}}",
    )
    assert send_options(tmp_path, "b").endpoint == "x"


def test_a_circle_of_files_is_named(tmp_path: Path) -> None:
    files(tmp_path, a="extends: b.yaml", b="x: 1\nextends: a.yaml")
    assert "b.yaml:2: extends: goes round in a circle: a.yaml -> b.yaml -> a.yaml" in trouble(tmp_path, "a.yaml")


def test_two_ways_to_one_file_are_no_circle(tmp_path: Path) -> None:
    files(tmp_path, top="extends: [a.yaml, b.yaml]", a="extends: base.yaml", b="extends: base.yaml", base=GRAPH)
    assert load_configuration([str(tmp_path / "top.yaml")], [], {}, registry()).pipelines


@pytest.mark.parametrize("value", ["3", "{a: b}", "[{a: b}]", "[1]"])
def test_extends_must_name_files(tmp_path: Path, value: str) -> None:
    files(tmp_path, a=f"extends: {value}\n{GRAPH}")
    assert trouble(tmp_path, "a.yaml") == ["a.yaml:1: extends: must be the path of a file, or a list of them"]


def test_a_missing_file_is_named_where_it_is_asked_for(tmp_path: Path) -> None:
    files(tmp_path, a="\nextends: no.yaml")
    assert trouble(tmp_path, "a.yaml", "gone.yaml") == [
        "a.yaml:2: cannot read 'no.yaml': no such file or directory",
        "gone.yaml: cannot read 'gone.yaml': no such file or directory",
    ]


def test_a_file_that_cannot_be_parsed_is_all_that_is_reported(tmp_path: Path) -> None:
    files(tmp_path, a="bogus: 1\n", b="a: [\n")
    assert [line.split(": ")[:2] for line in trouble(tmp_path, "a.yaml", "b.yaml")] == [["b.yaml:2", "is not YAML"]]


def test_problems_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files(tmp_path, z=f"{GRAPH}\nx: 1", a="y: 1\nz: 1")
    assert [line.split(": ")[0] for line in trouble(tmp_path, "z.yaml", "a.yaml")] == [
        "z.yaml:9",
        "a.yaml:1",
        "a.yaml:2",
    ]


def test_set_wins_over_every_file_and_reads_yaml(tmp_path: Path) -> None:
    texts = [GRAPH, "exporters: {send: {endpoint: x, limit: 1}}"]
    overrides = [
        "exporters.send.limit=2",
        "exporters.send.tags=[a, b]",
        "exporters.send.note=a=b",
        "exporters.send.limit=3",
    ]
    config = load(tmp_path, *texts, overrides=overrides).configured[Kind.EXPORTER, "send"].config
    assert isinstance(config, SendConfig)
    assert (config.limit, config.tags, config.note) == (3, ("a", "b"), "a=b")


def test_set_can_configure_a_component_with_a_name(tmp_path: Path) -> None:
    found = load(tmp_path, GRAPH, overrides=["exporters.drop/second="])
    assert (Kind.EXPORTER, "drop/second") in found.configured


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", "a.=1", "a." * 100 + "a=1"])
def test_set_must_be_a_path_and_a_value(tmp_path: Path, text: str) -> None:
    (line,) = problems(tmp_path, GRAPH, overrides=[text])
    assert line.startswith("--set: must be path=value, got ")


def test_problems_of_set_are_marked_so(tmp_path: Path) -> None:
    overrides = ["receivers.push.listener.port=x", "exporters.drop=[", "service.log={level: info, level: info}"]
    assert problems(tmp_path, GRAPH, overrides=overrides) == [
        "--set: exporters.drop: is not YAML: while parsing a flow node, did not find expected node content",
        "--set: service.log.level: is there twice (first at --set)",
        "--set: receivers.push.listener.port: must be a valid integer, got 'x'",
    ]


def test_what_set_replaces_needs_no_variable(tmp_path: Path) -> None:
    texts = [GRAPH, "exporters: {send: {endpoint: '${env:NOPE}'}}"]
    assert problems(tmp_path, *texts, overrides=["exporters.send.endpoint=x"]) == []


def test_a_file_in_a_value_is_relative_to_the_yaml_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush\n", encoding="utf-8")
    token = sent(tmp_path, "{endpoint: x, token: '${file:key}'}").token
    assert token
    assert token.get_secret_value() == "hush"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_bare_name_is_the_shipped_file(name: str) -> None:
    with pytest.raises(ConfigError) as caught:  # the types of this test's registry are others
        load_configuration([name], [], {}, registry())
    assert {Path(problem.mark.file).name for problem in caught.value.problems} <= {"base.yaml", f"{name}.yaml"}


def test_without_files_the_variable_names_the_configuration(tmp_path: Path) -> None:
    files(tmp_path, a=GRAPH)
    environ = {"METRICS_CONFIG": str(tmp_path / "a.yaml")}
    assert load_configuration([], [], environ, registry()).pipelines
    assert trouble(tmp_path, METRICS_CONFIG="productio") == [
        "METRICS_CONFIG: there is no file and no shipped configuration 'productio' (did you mean 'production'?)"
    ]


@pytest.mark.parametrize("environ", [{}, {"METRICS_CONFIG": ""}])
def test_without_files_and_variable_it_is_development(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"development\.yaml"):
        load_configuration([], ["service.log.level=loud"], environ, registry())


def test_the_shipped_folder_holds_what_the_names_stand_for() -> None:
    assert {f"{name}.yaml" for name in SHIPPED} < {path.name for path in shipped_folder().iterdir()}


def test_inside_a_wheel_the_shipped_folder_is_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "site" / "__init__.py"))
    assert shipped_folder() == tmp_path / "config"
    (tmp_path / "site" / "shipped").mkdir(parents=True)
    assert shipped_folder() == tmp_path / "site" / "shipped"
