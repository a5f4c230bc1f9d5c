"""YAML text to nodes: what is read as what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.problems import Mark, Problems
from pipeline.config.source import MAX_DEPTH, ListNode, MapNode, Node, ScalarNode, mark_at, parse_yaml, read_yaml
from pipeline.errors import ConfigError

START = Mark("f", 1)


def plain(node: Node | None) -> Any:
    """The data without marks."""
    if isinstance(node, MapNode):
        return {key: plain(value) for key, value in node.items.items()}
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    return node.value if node else None


def parse(text: str) -> Node:
    """The node, or ConfigError."""
    problems = Problems()
    node = parse_yaml(text, START, problems)
    problems.raise_any()
    assert node is not None
    return node


def refusal(text: str) -> str:
    """What is wrong with a text."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8890", 8890),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'8890'", "8890"),
        ('"true"', "true"),
        ("!!str 8890", "8890"),
        ("!!float 1", 1.0),
    ],
)
def test_plain_scalars_are_what_the_core_schema_says(text: str, value: object) -> None:
    found = parse(text)
    assert isinstance(found, ScalarNode)
    assert found.value == value
    assert type(found.value) is type(value)


def test_a_scalar_keeps_the_text_as_it_was_written() -> None:
    node = parse("a: 0o17")
    assert isinstance(node, MapNode)
    assert node.items["a"] == ScalarNode(START, 15, "0o17")


def test_a_value_is_marked_where_its_key_is() -> None:
    node = parse("a:\n  b:\n    - 1\n    - c:\n        2\n")
    assert mark_at(node, ("a", "b", 1, "c")).line == 4
    assert mark_at(node, ("a", "b", 1)).line == 4
    assert mark_at(node, ("a", "b")).line == 2


def test_the_mark_of_what_is_not_there_is_that_of_what_holds_it() -> None:
    assert mark_at(parse("x: 1\na:\n  b: 1"), ("a", "c", "d")).line == 2


def test_anchors_stand_for_what_they_name() -> None:
    assert plain(parse("a: &x {b: 1}\nc: *x")) == {"a": {"b": 1}, "c": {"b": 1}}


def test_keys_are_text_as_written() -> None:
    assert plain(parse("8890: a\ntrue: b")) == {"8890": "a", "true": "b"}


def test_every_key_that_is_there_twice_is_named_with_its_place() -> None:
    assert refusal("a: 1\nb:\n  c: 1\n  c: 2\na: 3") == (
        "f:4: b.c: is there twice (first at f:3)\nf:5: a: is there twice (first at f:1)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n\tb: 2", "f:2: is not YAML: "),
        ("a: [1\nb: 2", "f:2: is not YAML: "),
        ("a: *x", "f:1: is not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "f:2: is not YAML: expected a single document in the stream"),
        ("é: 1\nb: \x07", "f:2: is not YAML: control characters are not allowed"),
        ("a: \ud800", "f:1: is not YAML: a character that is not Unicode"),
        ("a: 1\n? [b]\n: 2", "f:2: must have text as its keys"),
        ("a: 1\nb: !!python/object:os.system {}", "f:2: b: has a tag (must be plain data; text with ! needs quotes)"),
        ("a: !!int x", "f:1: a: is not what !!int can be"),
        ("a: !hush", "f:1: a: has a tag"),
        ("a: !!null x", "f:1: a: is not what !!null can be"),
        ("a: " + "9" * 5000, "f:1: a: is not what !!int can be"),
        ("a:\n " + "[" * 5000, f"f:2: is nested more than {MAX_DEPTH} deep"),
        ("- " * 200_000, f"f:1: is nested more than {MAX_DEPTH} deep"),
        ("a: &a [*a]", "f:1: is too large"),
        (
            "a: &a [x, x]\n" + "".join(f"{i}: &{i} [*{i - 1}, *{i - 1}]\n" for i in range(1, 40)).replace("*0", "*a"),
            "f:",
        ),
    ],
)
def test_what_nobody_means_is_refused_with_its_place(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_tabs_are_named_as_the_reason() -> None:
    assert "indent with spaces, not tabs" in refusal("a:\n\tb: 2")


@given(st.text() | st.text(alphabet="ab:-[]{}&*!|>'\"\n\t #?,%@$0.~"))
def test_any_text_is_data_or_located_problems(text: str) -> None:
    problems = Problems()
    node = parse_yaml(text, START, problems)
    if node is None:
        with pytest.raises(ConfigError, match=r"^f:\d+: "):
            problems.raise_any()
    else:
        assert mark_at(node, ()) == START or node.mark.line > 1


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abc \n\"'{}:$é", max_size=8)
)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab:# ", max_size=4), inner, max_size=3)
)


@given(trees)
def test_json_is_read_as_what_it_is(tree: object) -> None:
    assert plain(parse(json.dumps(tree))) == tree


@pytest.mark.parametrize("text", ["- a\n- b", "just text", "3"])
def test_a_file_must_hold_a_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8")
    problems = Problems()
    assert read_yaml(path, "f.yaml", START, problems) is None
    with pytest.raises(ConfigError, match=r"f\.yaml:1: must be a mapping"):
        problems.raise_any()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8")
    assert plain(read_yaml(path, "f.yaml", START, Problems())) == {}


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert plain(read_yaml(path, "f.yaml", START, Problems())) == {"a": 1}


def test_a_file_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: \xff")
    problems = Problems()
    assert read_yaml(path, "f.yaml", START, problems) is None
    with pytest.raises(ConfigError, match=r"^f\.yaml: is not UTF-8 text$"):
        problems.raise_any()
