"""The wheel holds all that a service needs, and nothing else: installed, it runs without the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.running import process
from tests.test_docs import ROOT
from tests.test_docs_run import push_and_flush, stored

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def in_checkout(folder: str, pattern: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern)}


def test_the_wheel_holds_the_programs_the_migrations_and_the_configuration_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    shipped = {name.replace("config/", "pipeline/shipped/") for name in in_checkout("config", "*.yaml")}
    templates = in_checkout("pipeline", "*.template")
    others = in_checkout("plugins", "*.sql") | in_checkout("pipeline", "py.typed")
    assert shipped
    assert templates
    assert others
    assert held == in_checkout("pipeline", "*.py") | in_checkout("plugins", "*.py") | others | shipped | templates


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
def test_an_installed_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(installed), str(wheel)], check=True, capture_output=True)
    data = tmp_path / "data"
    data.mkdir()
    program = "import pipeline, plugins; print(pipeline.__file__, plugins.__file__)"
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    where = subprocess.run(
        [sys.executable, "-c", program], cwd=data, env=environ, check=True, capture_output=True, text=True
    )
    assert [Path(file).parents[1] for file in where.stdout.split()] == [installed, installed]
    with process(data, PYTHONPATH=str(installed)) as (_, base):
        push_and_flush(base)
    assert stored(data / "metrics.db") == [1.0]
