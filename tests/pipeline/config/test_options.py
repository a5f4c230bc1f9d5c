"""How options are read, and how their problems are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.component import Kind
from pipeline.config.load import load_configuration
from pipeline.errors import ConfigError
from pipeline.registry import BrokenPlugin
from tests.pipeline.config.plugins import GRAPH, load, problems, registry, sent


def complaint(folder: Path, options: str, **environ: str) -> list[str]:
    """What is wrong with these options of an exporter `send`, without its place."""
    lines = problems(folder, GRAPH, f"exporters: {{send: {options}}}", environ=environ)
    return [line.removeprefix("1.yaml:1: exporters.send") for line in lines]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("limit", "12", 12),
        ("ratio", "0.25", 0.25),
        ("verify", "off", False),
        ("size", "10MB", 10_000_000),
        ("timeout", "5m", 300.0),
        ("folder", "/x/y", Path("/x/y")),
        ("compression", "gzip", "gzip"),
        ("note", "true", "true"),
        ("anything", "7", "7"),
    ],
)
def test_a_value_that_is_one_substitution_takes_the_type_of_its_field(
    tmp_path: Path, option: str, value: str, expected: object
) -> None:
    config = sent(tmp_path, f"{{endpoint: x, {option}: '${{env:V}}'}}", V=value)
    assert getattr(config, option) == expected


@pytest.mark.parametrize(
    ("option", "off"),
    [
        ("limit", None),
        ("token", None),
        ("anything", None),
        ("note", ""),
        ("folder", Path("data")),
        ("compression", "none"),
        ("size", 1000),
        ("timeout", 5.0),
        ("verify", True),
        ("tags", ()),
    ],
)
def test_an_empty_substitution_is_off(tmp_path: Path, option: str, off: object) -> None:
    config = sent(tmp_path, f"{{endpoint: x, {option}: '${{env:NONE:-}}'}}")
    assert getattr(config, option) == off


def test_an_empty_substitution_leaves_a_secret_its_default(tmp_path: Path) -> None:
    assert sent(tmp_path, "{endpoint: x, password: '${env:NONE:-}'}").password.get_secret_value() == "changeme"


def test_a_part_of_a_list_that_is_off_is_left_out_where_it_cannot_be_text(tmp_path: Path) -> None:
    config = sent(tmp_path, "{endpoint: x, headers: {a: '${env:NONE:-}', b: '${env:B}'}}", B="hush")
    assert {name: value.get_secret_value() for name, value in config.headers.items()} == {"b": "hush"}


def test_a_field_for_text_gets_it_as_written(tmp_path: Path) -> None:
    config = sent(tmp_path, "{endpoint: 010, token: 1e3, note: on, tags: [1.0, true], folder: 12}")
    assert config.token
    assert config.token.get_secret_value() == "1e3"
    assert (config.endpoint, config.note, config.tags, config.folder) == ("010", "on", ("1.0", "true"), Path("12"))


def test_the_sort_of_anything_is_what_it_looks_like(tmp_path: Path) -> None:
    config = sent(tmp_path, "{endpoint: x, anything: [1, 1.5, true, null, on, '1']}")
    assert config.anything == [1, 1.5, True, None, "on", "1"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("{}", ".endpoint: is missing (must be set)"),
        ("{endpoint: null}", ".endpoint: must be text, got null"),
        ("{endpoint: [a]}", ".endpoint: must be text, got a list"),
        ("{endpoint: x, limit: ten}", ".limit: must be a valid integer, got 'ten'"),
        ("{endpoint: x, limit: 1.5}", ".limit: must be a valid integer, got a number with a fractional part, got 1.5"),
        ("{endpoint: x, level: high}", ".level: must be a valid integer or must be 'auto', got 'high'"),
        ("{endpoint: x, verify: maybe}", ".verify: must be a boolean, got 'maybe' (true or false)"),
        (
            "{endpoint: x, size: 5 apples}",
            ".size: must be a size, got '5 apples' (for example 10MB, 10MiB or a number of bytes)",
        ),
        ("{endpoint: x, size: -5}", ".size: must be greater than or equal to 0, got -5"),
        ("{endpoint: x, compression: gzp}", ".compression: must be 'none' or 'gzip', got 'gzp'"),
        ("{endpoint: x, tags: a}", ".tags: must be a list, got a single value"),
        ("{endpoint: x, tags: [a, [b]]}", ".tags[1]: must be text, got a list"),
        ("{endpoint: x, retry: 3}", ".retry: must be a mapping, got a single value"),
        ("{endpoint: x, retry: {attempts: many}}", ".retry.attempts: must be a valid integer, got 'many'"),
        ("{endpoint: x, retry: {attemps: 3}}", ".retry.attemps: is not a known option (did you mean 'attempts'?)"),
        ("{endpoint: x, retry: {zzz: 3}}", ".retry.zzz: is not a known option (known: attempts, wait)"),
        ("{endpoint: x, enabeld: false}", ".enabeld: is not a known option (did you mean 'enabled'?)"),
        ("{endpoint: '${env:NONE}'}", ".endpoint: environment variable 'NONE' is not set"),
        ("[a]", ": must be a mapping of options"),
        ("{endpoint: x, note: " + "y" * 500 + "}", None),
    ],
)
def test_a_wrong_option_is_said_in_one_sentence(tmp_path: Path, options: str, line: str | None) -> None:
    found = complaint(tmp_path, options)
    assert len(found) == (line is not None)
    assert not line or found[0].startswith(line)


def test_an_option_that_is_set_to_something_empty_is_not_called_missing(tmp_path: Path) -> None:
    text = "exporters: {careless: {broken: ''}}\nreceivers: {push: {listener: {port: '${env:NONE:-}'}}}"
    assert "1.yaml:2: receivers.push.listener.port: must be set, and what it is set to is empty" in problems(
        tmp_path, GRAPH, text
    )


def test_long_values_are_cut(tmp_path: Path) -> None:
    (line,) = complaint(tmp_path, f"{{endpoint: x, limit: {'y' * 500}}}")
    assert line.endswith(f"{'y' * 79}…")


def test_every_problem_of_every_component_is_said_at_once(tmp_path: Path) -> None:
    text = "exporters:\n  send:\n    limit: a\n    size: b\n  send/2:\n    ratio: c\n    endpoint: x\n"
    assert [line.split(": ")[:2] for line in problems(tmp_path, GRAPH, text)] == [
        ["1.yaml:2", "exporters.send.endpoint"],
        ["1.yaml:3", "exporters.send.limit"],
        ["1.yaml:4", "exporters.send.size"],
        ["1.yaml:6", "exporters.send/2.ratio"],
    ]


SECRETS = [
    "{endpoint: x, token: [hush]}",
    "{endpoint: x, token: {a: '${env:S}'}}",
    "{endpoint: x, headers: '${env:S}'}",
    "{endpoint: x, headers: {a: ['${env:S}']}}",
    "{endpoint: x, tokn: '${env:S}'}",
    "{endpoint: x, token: '${env:S'}",
    "{endpoint: x, token: 'hush${hush hush}'}",
    "{endpoint: x, retry: '${env:S}'}",
]


@pytest.mark.parametrize("options", SECRETS)
def test_secrets_are_not_quoted(tmp_path: Path, options: str) -> None:
    found = complaint(tmp_path, options, S="hush")
    assert found
    assert "hush" not in "".join(found)


@pytest.mark.parametrize("secret", ["hush", "hu'\\sh\nhu\"sh", "a"])
@pytest.mark.parametrize("form", ["'${env:S}'", "['${env:S}']", "{a: {b: '${env:S}'}}"])
def test_what_a_validator_says_of_a_secret_is_not_shown(tmp_path: Path, secret: str, form: str) -> None:
    text = f"exporters: {{careless: {{password: {form}}}}}"
    assert problems(tmp_path, GRAPH, text, environ={"S": secret}) == [
        "1.yaml:1: exporters.careless.password: is not valid (the reason holds a secret and is not shown)"
        + (" (from S)" if form == "'${env:S}'" else ""),
    ]


def test_what_a_broken_validator_says_of_a_secret_is_not_shown(tmp_path: Path) -> None:
    text = "exporters: {careless: {password: '${env:S}', broken: '${env:S}'}}"
    assert problems(tmp_path, GRAPH, text, environ={"S": "hush"}) == [
        "1.yaml:1: exporters.careless: cannot be checked, because CarelessConfig failed: KeyError",
    ]


def test_a_validator_that_breaks_is_a_located_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, GRAPH, "exporters: {careless: {broken: x}}") == [
        "1.yaml:1: exporters.careless: cannot be checked, because CarelessConfig failed: KeyError: 'x'"
    ]


def test_a_component_that_is_not_used_is_checked_and_otherwise_fine(tmp_path: Path) -> None:
    found = load(tmp_path, GRAPH, "exporters: {send: {endpoint: x}}")
    assert (Kind.EXPORTER, "send") not in found.components
    assert problems(tmp_path, GRAPH, "exporters: {send: {endpoint: x, limit: y}}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("exporters: {snd: {}}", "exporters.snd: unknown type of exporter 'snd' (did you mean 'send'?)"),
        ("connectors: {xyz: {}}", "connectors.xyz: unknown type of connector 'xyz' (known: loop, series)"),
        (
            "exporters: {series: {}}",
            "exporters.series: 'series' is not a type of exporter (it belongs under connectors)",
        ),
        (
            "exporters: {drop/: {}}",
            "exporters.drop/: must be type or type/name, of letters, digits, '_' and '-', got 'drop/'",
        ),
        ("exporters: {a b: {}}", "exporters.a b: must be type or type/name"),
        ("exporters: {drop/a/b: {}}", "exporters.drop/a/b: must be type or type/name"),
        ("exporters: [drop]", "exporters: must be a mapping of ids to options, got a list"),
        ("exporter: {}", "exporter: is not a known section (did you mean 'exporters'?)"),
        (
            "port: 9000",
            "port: is not a known section (known: connectors, exporters, extensions, processors, receivers, service)",
        ),
        ("service: 3", "service: must be a mapping, got 3"),
        (
            "service: {log: {level: loud}}",
            "service.log.level: must be 'debug', 'info', 'warning' or 'error', got 'loud'",
        ),
        ("service: {log: {format: xml}}", "service.log.format: must be 'auto', 'json' or 'text', got 'xml'"),
        ("service: {stop_timeout: soon}", "service.stop_timeout: must be a duration, got 'soon'"),
        ("service: {pipeline: {}}", "service.pipeline: is not a known option (did you mean 'pipelines'?)"),
    ],
)
def test_a_wrong_shape_is_said_in_one_sentence(tmp_path: Path, text: str, line: str) -> None:
    assert [found for found in problems(tmp_path, GRAPH, text) if found.startswith(f"1.yaml:1: {line}")]


def test_a_wrong_value_names_the_variable_or_the_file_that_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "ratio").write_text("much\n", encoding="utf-8")
    assert complaint(tmp_path, "{endpoint: x, limit: '${env:LIMIT:-5}', ratio: '${file:ratio}'}", LIMIT="abc") == [
        ".limit: must be a valid integer, got 'abc' (from LIMIT)",
        ".ratio: must be a valid number, got 'much' (from file ratio)",
    ]
    assert complaint(tmp_path, "{endpoint: x, limit: '${env:LIMIT:-five}'}") == [
        ".limit: must be a valid integer, got 'five'"
    ], "the default is not the variable's"


def test_broken_plugins_are_named_where_a_type_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{GRAPH}\nconnectors: {{kafka: }}", encoding="utf-8")
    broken = BrokenPlugin("metrics-kafka (kafka:plugin)", "ImportError: no librdkafka")
    with pytest.raises(ConfigError) as caught:
        load_configuration([str(path)], [], {}, registry(broken))
    assert str(caught.value).endswith(
        "connectors.kafka: unknown type of connector 'kafka' (known: loop, series); "
        "these plugins could not be loaded: metrics-kafka (kafka:plugin): ImportError: no librdkafka"
    )


def test_a_broken_plugin_that_nobody_asks_for_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(GRAPH, encoding="utf-8")
    assert load_configuration([str(path)], [], {}, registry(BrokenPlugin("x", "y"))).pipelines


def test_settings_of_the_engine(tmp_path: Path) -> None:
    settings = load(tmp_path, GRAPH, "service: {log: {level: WARNING, format: JSON}, stop_timeout: 1m}").settings
    assert (settings.log.level, settings.log.format, settings.stop_timeout) == ("warning", "json", 60)
    settings = load(tmp_path, GRAPH, "service: {log: {level: '${env:NONE:-}'}}").settings
    assert (settings.log.level, settings.log.format, settings.stop_timeout) == ("info", "auto", 10)
