"""A third party's package, from its wheel: in an environment that has never seen the checkout, it does what its README says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.running import KEY, process
from tests.test_architecture import imports, package_of
from tests.test_docs import ROOT

EXAMPLE = ROOT / "examples" / "metrics-service-jsonl"
PROGRAMS_OF_TESTS = ("pytest", "anyio")
"""What the extra `test` of the example needs beside what the service needs, as far as its tests go."""

SECRET = "hunter2"
EVENT = {
    "type": "custom",
    "value": 1,
    "dimensions": {"metric_name": "logins", "password": SECRET},
    "metadata": {"mail": "somebody@example.org", "note": "kept"},
}


class Fresh(NamedTuple):
    """An environment of its own."""

    programs: Path

    def call(self, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one of its programs in `folder`, without what the tests' own environment sets."""
        inherited = ("PYTHON", "METRICS_", "SQLITE_", "OTEL_", "VIRTUAL_ENV")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
        program, *rest = words
        return subprocess.run(
            [self.programs / program, *rest], cwd=folder, env=environ, capture_output=True, text=True, timeout=200
        )


def build(source: Path, folder: Path) -> Path:
    """The wheel of a package."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def locked(lock: Path, *names: str) -> list[str]:
    """These of the pinned packages, as requirements."""
    found = dict(re.findall(r"^([\w.-]+)(==\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    return [f"{name}{found[name]}" for name in names]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """The pinned dependencies, both wheels, and pytest."""
    folder = tmp_path_factory.mktemp("fresh")
    wheels = [build(ROOT, folder / "service"), build(EXAMPLE, folder / "example")]
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True, capture_output=True)
    made = Fresh(folder / "environment" / "bin")
    quiet = ("install", "--quiet", "--disable-pip-version-check")
    downloads: list[list[str]] = [
        ["--require-hashes", "-r", str(ROOT / "requirements.lock")],
        locked(ROOT / "requirements-dev.lock", *PROGRAMS_OF_TESTS),
    ]
    for each in downloads:
        ended = made.call(folder, "pip", *quiet, *each)
        if ended.returncode:
            line = f"the dependencies cannot be installed: {ended.stderr.strip().splitlines()[-1]}"
            if os.environ.get("CI"):
                pytest.fail(line)
            pytest.skip(line)
    ended = made.call(folder, "pip", *quiet, "--no-deps", "--no-index", *wheels)
    assert ended.returncode == 0, ended.stderr
    return made


def test_it_imports_nothing_of_ours_but_what_is_public() -> None:
    of_ours = {"src": {"pipeline"}, "tests": {"pipeline", "pipeline.testing"}}
    for folder, allowed in of_ours.items():
        files = sorted((EXAMPLE / folder).rglob("*.py"))
        assert files
        for path in files:
            used = {module for module, _ in imports(path) if package_of(module) in ("pipeline", "plugins", "tests")}
            assert used <= allowed, path


@pytest.mark.timeout(240)
def test_its_components_are_listed_with_its_name(fresh: Fresh, tmp_path: Path) -> None:
    ended = fresh.call(tmp_path, "metrics-service", "components")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^processor +redact +metrics-service-jsonl ", ended.stdout, re.MULTILINE)
    assert re.search(r"^exporter +jsonl +metrics-service-jsonl ", ended.stdout, re.MULTILINE)
    assert "broken" not in ended.stderr


@pytest.mark.timeout(240)
def test_what_is_wrong_with_its_options_is_said_with_its_place(fresh: Fresh, tmp_path: Path) -> None:
    text = (EXAMPLE / "jsonl.yaml").read_text(encoding="utf-8")
    wrong = text.replace("path:", "paht:").replace("patterns: ['", "patterns: ['(")
    (tmp_path / "wrong.yaml").write_text(wrong, encoding="utf-8")
    lines = {part: number for number, line in enumerate(wrong.splitlines(), 1) for part in line.split()}
    ended = fresh.call(tmp_path, "metrics-service", "validate", "--config", "wrong.yaml")
    assert ended.returncode == 2
    found = ended.stderr.splitlines()
    (pattern,) = (line for line in found if "patterns" in line)
    (option,) = (line for line in found if "paht" in line)
    assert option.startswith(f"error: wrong.yaml:{lines['paht:']}: exporters.jsonl.paht: is not a known option")
    assert "'path'" in option
    assert pattern.startswith(
        f"error: wrong.yaml:{lines['patterns:']}: processors.redact.patterns[0]: must be a valid regular expression"
    )


@pytest.mark.timeout(240)
def test_a_service_of_it_redacts_what_is_pushed_and_writes_it(fresh: Fresh, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "jsonl.yaml", tmp_path)
    with process(tmp_path, config="jsonl.yaml", program=[str(fresh.programs / "metrics-service")]) as (_, base):
        headers = {"X-API-Key": KEY}
        answer = httpx.post(f"{base}/metrics", headers=headers, json={"service": "test", "metrics": [EVENT]})
        assert answer.status_code == 200, answer.text
        assert httpx.post(f"{base}/flush", headers=headers).json()["status"] == "success"
        (line,) = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    written = json.loads(line)
    assert written["dimensions"] == {"metric_name": "logins", "password": "[redacted]"}
    assert written["metadata"] == {"mail": "[redacted]", "note": "kept"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "metrics.db" in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.timeout(240)
def test_its_own_tests_pass_there(fresh: Fresh, tmp_path: Path) -> None:
    words = ("pytest", "-q", "-p", "no:cacheprovider", EXAMPLE / "tests", "-c", EXAMPLE / "pyproject.toml")
    ended = fresh.call(tmp_path, *words)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"^\d+ passed", ended.stdout, re.MULTILINE)
