"""Substitution in strings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.substitution import MAX_DEPTH, SubstitutionError, substitute

HERE = Path()


def result(text: str, folder: Path = HERE, **environ: str) -> str:
    """The substituted text."""
    return substitute(text, environ, folder).text


def refusal(text: str, folder: Path = HERE, **environ: str) -> str:
    """Why it cannot be substituted."""
    with pytest.raises(SubstitutionError) as caught:
        substitute(text, environ, folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${env:A}", "1"),
        ("x${env:A}y${env:A}z", "x1y1z"),
        ("${env:A:-2}", "1"),
        ("${env:NONE:-2}", "2"),
        ("${env:EMPTY:-2}", "2"),
        ("${env:NONE:-}", ""),
        ("${env:A:+yes}", "yes"),
        ("${env:NONE:+yes}", ""),
        ("${env:EMPTY:+yes}", ""),
        ("${env:NONE:-${env:EMPTY:-${env:A}}}!", "1!"),
        ("${env:NONE:-a$$b}", "a$b"),
        ("${env:NONE:-http://h:1/x-y}", "http://h:1/x-y"),
        ("${env:A:-${env:NONE}}", "1"),
        ("${env:NONE:+${env:NONE}}", ""),
        ("${env:A:-x$$}", "1"),
        ("$$", "$"),
        ("$${env:A}", "${env:A}"),
        ("$$$${", "$${"),
        ("a$b }{ 5$", "a$b }{ 5$"),
    ],
)
def test_forms(text: str, expected: str) -> None:
    assert result(text, A="1", EMPTY="") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${env:NOPE}", "environment variable 'NOPE' is not set (set it, or give a default: ${env:NOPE:-default})"),
        ("${env:EMPTY}", "environment variable 'EMPTY' is not set"),
        ("${env:EMPTY:-${env:NOPE}}", "environment variable 'NOPE' is not set"),
        ("${HOME}", "unknown substitution '${HOME}' (must be ${env:HOME}; $$ for a dollar sign)"),
        ("${vault:x}", "unknown substitution '${vault:' (must be ${env:NAME} or ${file:PATH}; $$ for a dollar sign)"),
        ("${}", "unknown substitution (must be"),
        ("${a-b}", "unknown substitution (must be"),
        ("${env:}", "has no variable's name after '${env:'"),
        ("${env:A", "has a '${' without its '}'"),
        ("${env:A:-x", "has a '${' without its '}'"),
        ("${env:NONE:-x", "has a '${' without its '}'"),
        ("${file:x", "has a '${' without its '}'"),
        ("${", "has a '${' without its '}'"),
        ("${env:A:?x}", "must go on with '}', ':-' or ':+' after '${env:A'"),
        ("${env:N:-" * 5000 + "}" * 5000, f"nests substitutions more than {MAX_DEPTH} deep"),
    ],
)
def test_what_is_no_form_is_refused_with_what_would_be_right(text: str, message: str) -> None:
    assert refusal(text, A="1", EMPTY="").startswith(message)


def test_values_are_not_looked_into() -> None:
    assert result("${env:A}", A="${env:B}$$") == "${env:B}$$"


def test_a_file_is_read_without_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("two\nlines\n\n", encoding="utf-8")
    (tmp_path / "dos").write_bytes(b"a\r\nb\r\n")
    assert result("${file:secret}", tmp_path) == "two\nlines\n"
    assert result("${file:dos}", tmp_path) == "a\r\nb"
    assert result(f"<${{file:{tmp_path}/${{env:NAME}}}}>", HERE, NAME="secret") == "<two\nlines\n>"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    assert refusal("${file:no}", tmp_path) == f"cannot read the file '{tmp_path}/no': no such file or directory"
    assert refusal("${file:}", tmp_path) == f"cannot read the file '{tmp_path}': is a directory"
    assert "does not hold UTF-8 text" in refusal("${file:binary}", tmp_path)


@pytest.mark.parametrize("written", ["", "\n", "\r\n"])
def test_a_file_that_holds_nothing_is_a_mistake(tmp_path: Path, written: str) -> None:
    (tmp_path / "empty").write_bytes(written.encode())
    assert refusal("${file:empty}", tmp_path) == f"the file '{tmp_path}/empty' is empty (must hold the value)"
    assert "is empty" in refusal("${env:NONE:-${file:empty}}", tmp_path)


@pytest.mark.parametrize(
    ("text", "whole"),
    [("${env:A}", True), ("${env:N:-${env:A}}", True), ("${env:A} ", False), ("x", False), ("$$", False)],
)
def test_whole_says_whether_it_was_exactly_one_substitution(text: str, whole: bool) -> None:
    assert substitute(text, {"A": "1"}, HERE).whole is whole


def test_used_names_what_went_in_and_not_what_was_asked_in_vain(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x", encoding="utf-8")
    found = substitute("${env:A}${env:N:-${file:f}}${env:A:-${env:B}}", {"A": "1", "B": "2"}, tmp_path)
    assert found.used == ["env A", f"file {tmp_path}/f", "env A"]


@given(st.text().filter(lambda text: "$" not in text))
def test_text_without_a_dollar_sign_is_unchanged(text: str) -> None:
    assert result(text) == text


@given(st.text(alphabet="$}{ab:-env") | st.text())
def test_doubled_dollar_signs_give_the_text_back(text: str) -> None:
    assert result(text.replace("$", "$$")) == text


@given(st.text(alphabet="ab$"), st.text())
def test_the_value_of_a_variable_arrives_as_it_is(before: str, value: str) -> None:
    environ: Mapping[str, str] = {"A": value}
    found = substitute(f"{before.replace('$', '$$')}${{env:A:-}}", environ, HERE)
    assert found.text == before + value


@given(st.text(alphabet="$}{:-+envAfil"))
def test_any_text_is_substituted_or_refused(text: str) -> None:
    with suppress(SubstitutionError):
        assert substitute(text, {"A": "1"}, Path("/nonexistent")).text is not None
