"""`metrics-service plugin new`: what it writes is green at once, and what it cannot write it says in one line."""

from __future__ import annotations

import ast
import importlib
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.cli_plugin import _NAME, LONGEST_NAME, _nearest, package_files
from pipeline.component import Kind
from tests.overlay import call, make_overlay
from tests.running import running, without_blocks

RUFF = Path(sys.executable).parent / "ruff"
LONG = "a_plugin_with_a_longname"


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line that the command ends with."""
    with pytest.raises(SystemExit) as exit_:
        main(["plugin", "new", *words])
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err)
    return err.removeprefix("error: ").strip()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", Kind)
def test_the_package_of_every_kind_is_green_at_once(
    kind: Kind, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYPY_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "mypy"))
    programs = make_overlay(tmp_path / "environment")
    printed = call(programs, tmp_path, "metrics-service", "plugin", "new", kind, "slow_calls", "--into", "made")
    folder = tmp_path / "made" / "metrics-service-slow-calls"
    shown = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert shown == [
        "cd made/metrics-service-slow-calls",
        "pip install -e '.[test]'",
        "pytest",
        "metrics-service run --config slow_calls.yaml",
    ]
    call(programs, folder, "pip", "install", "--no-deps", ".")
    assert " passed" in call(programs, folder, "pytest", "-p", "no:cacheprovider")
    call(programs, folder, "mypy", "--strict")
    call(programs, folder, "ruff", "check", ".")
    listed = call(programs, folder, "metrics-service", "components")
    assert re.search(rf"^{kind} +slow_calls +metrics-service-slow-calls ", listed, re.MULTILINE), listed
    assert call(programs, folder, "metrics-service", "validate", "--config", "slow_calls.yaml").startswith("valid: ")
    assert "slow_calls" in call(programs, folder, "metrics-service", "graph", "--config", "slow_calls.yaml")


@pytest.mark.anyio
@pytest.mark.parametrize("kind", Kind)
async def test_the_configuration_of_every_kind_runs(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"made_{kind}"
    monkeypatch.chdir(tmp_path)
    write(package_files(kind, name), tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "src")
    plugin = importlib.import_module(f"metrics_service_{name}")
    async with running(tmp_path, config=f"{name}.yaml", plugins=[plugin]) as service:
        answer = await service.push({"type": "custom", "value": 1, "duration_ms": 2000})
        assert answer.status_code == 200, answer.text
        await service.flush()
        ready = (await service.client.get("/health/ready")).json()
        assert without_blocks(ready["components"])[f"{kind}/{name}"] == "ok"
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.WARNING] == []


def write(files: Mapping[str, str], folder: Path) -> None:
    """Put the files of a package into a folder."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["a", "exporter", "test", LONG])
@pytest.mark.parametrize("kind", Kind)
def test_the_package_of_every_name_is_well_formatted(kind: Kind, name: str, tmp_path: Path) -> None:
    write(package_files(kind, name), tmp_path)
    for words in (["check"], ["format", "--check"]):
        ended = subprocess.run([RUFF, *words, "--no-cache", tmp_path], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout


@given(kind=st.sampled_from(Kind), name=st.from_regex(r"[a-z][a-z0-9]{0,9}(_[a-z0-9]{1,9}){0,2}", fullmatch=True))
def test_the_package_of_every_name_is_python_without_a_placeholder(kind: Kind, name: str) -> None:
    for path, text in package_files(kind, name).items():
        assert "$" not in text, path
        if path.endswith(".py"):
            tree = ast.parse(text)
            made = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
            imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
            assert imported.isdisjoint(made), "a class that hides what it is made of"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Slow-Calls", "slow_calls"),
        ("slowCalls", "slow_calls"),
        ("slow calls", "slow_calls"),
        ("2slow", "slow"),
        ("_slow", "slow"),
        ("slow_", "slow"),
        ("slow__calls", "slow_calls"),
        ("slow.calls/../x", "slow_calls_x"),
        ("größe", "gr_e"),
        ("", "slow_calls"),
        ("42", "slow_calls"),
        ("slow\n", "slow"),
    ],
)
def test_a_name_that_is_not_snake_case_is_refused_with_one_that_is(
    name: str, nearest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, "exporter", name, "--into", str(tmp_path))
    assert line == (
        f"NAME: {name!r} is not snake_case (must be words of small letters and digits, joined by _, for example {nearest})"
    )
    assert list(tmp_path.iterdir()) == []


@given(st.text())
def test_a_name_is_good_or_refused(name: str) -> None:
    assert _NAME.fullmatch(_nearest(name))
    if _NAME.fullmatch(name):
        assert name.isascii()
        assert name == name.lower()
        assert name.isidentifier()


def test_the_longest_name_is_that_which_the_templates_are_formatted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(LONG) == LONGEST_NAME
    line = mistake(capsys, "exporter", f"{LONG}s", "--into", str(tmp_path))
    assert line == f"NAME: '{LONG}s' is 25 letters long (must be at most 24)"


def test_the_name_of_another_component_of_that_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, "exporter", "debug", "--into", str(tmp_path))
    assert line == "NAME: there is an exporter 'debug' already, of plugins.exporters.debug (must be another name)"
    with pytest.raises(SystemExit):
        main(["plugin", "new", "processor", "debug", "--into", str(tmp_path)])
    assert (tmp_path / "metrics-service-debug" / "debug.yaml").exists(), "another kind may have that name"


def test_an_unknown_kind_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, "sink", "mine")
    assert line == (
        "KIND: 'sink' is not a kind of component (must be one of receiver, processor, exporter, connector, extension)"
    )


def test_a_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "metrics-service-mine"
    folder.mkdir()
    line = mistake(capsys, "exporter", "mine", "--into", str(tmp_path))
    assert line == f"{folder}: exists already (give another NAME, or another folder with --into)"
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    line = mistake(capsys, "exporter", "mine", "--into", str(tmp_path / "file"))
    assert line == f"{tmp_path}/file/metrics-service-mine: cannot be written: Not a directory"
