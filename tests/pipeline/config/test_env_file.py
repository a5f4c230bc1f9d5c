"""The `.env` format."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.env_file import read_env_file
from pipeline.errors import ConfigError

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, text: str) -> dict[str, str]:
    """The variables of a file with this text."""
    path = folder / ".env"
    path.write_bytes(text.encode())
    return read_env_file(path)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("export A=1", "1"),
        ("  A = 1  ", "1"),
        ("A=", ""),
        ("A= # nothing", ""),
        ("A=a b # c", "a b"),
        ("A=a#b", "a#b"),
        ("A=#b", "#b"),
        ('A="100"  # Lower for development', "100"),
        ('A="a # b"', "a # b"),
        ("A='a \"b\" \\n'", 'a "b" \\n'),
        (r'A="a\n\t\"b\" \\ \$ \x"', 'a\n\t"b" \\ $ \\x'),
        ("A=it's", "it's"),
        ("A=b=c", "b=c"),
        ("A=1\r", "1"),
    ],
)
def test_a_line_gives_its_value(tmp_path: Path, line: str, value: str) -> None:
    assert read(tmp_path, f"# first\n\n{line}\n") == {"A": value}


def test_the_last_line_of_a_name_counts(tmp_path: Path) -> None:
    assert read(tmp_path, "A=1\nB=2\nA=3") == {"A": "3", "B": "2"}


def test_every_bad_line_is_named_and_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, 'A=1\nhush\nB=\'hush\n1B=hush\nC="x" hush\n')
    text = str(caught.value).replace(f"{tmp_path}/", "")
    assert text.splitlines() == [
        ".env:2: must be NAME=value, a comment or empty",
        ".env:3: B: has a quote that does not end, or text behind it",
        ".env:4: must be NAME=value, a comment or empty",
        ".env:5: C: has a quote that does not end, or text behind it",
    ]


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the env file: no such file or directory"):
        read_env_file(tmp_path / "no")


def test_a_file_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"A=\xff")
    with pytest.raises(ConfigError, match=r"\.env: is not UTF-8 text$"):
        read_env_file(path)


values = st.text(st.characters(blacklist_characters="\n\r\x00", blacklist_categories=["Cs"]))


@same_folder
@given(values.filter(lambda text: "'" not in text))
def test_single_quotes_keep_any_text(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, f"A='{value}' # c") == {"A": value}


@same_folder
@given(values)
def test_double_quotes_keep_any_escaped_text(tmp_path: Path, value: str) -> None:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    assert read(tmp_path, f'A="{escaped}"') == {"A": value}


@same_folder
@given(st.text(alphabet="AB= '\"#\\\nx") | st.text(st.characters(blacklist_categories=["Cs"])))
def test_any_text_is_variables_or_located_problems(tmp_path: Path, text: str) -> None:
    lines = text.count("\n") + text.count("\r") + 1
    try:
        found = len(read(tmp_path, text))
    except ConfigError as error:
        found = len({problem.mark.line for problem in error.problems})
    assert found <= lines
