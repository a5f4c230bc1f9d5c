""".env.example: every variable that there is, with the value that it has anyhow."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from docs.environment import variables
from pipeline.config.load import load_configuration, read_env_file
from pipeline.registry import load_registry
from tests.test_docs import DOCS, ROOT, table

REGISTRY = load_registry(installed=False)
EXAMPLE = ROOT / ".env.example"
OURS = {"METRICS_CONFIG", "METRICS_API_KEY_DEFAULT"}
"""Which no file of `config/` names."""
GUIDE = {
    "SQLITE_DB_PATH", "METRICS_SERVICE_HOST", "METRICS_SERVICE_PORT", "OTEL_PROMETHEUS_ENABLED", "OTEL_PROMETHEUS_PORT",
    "METRICS_RATE_LIMIT",
}  # fmt: skip
"""What the guide's `.env` for development sets."""


def everything(folder: Path) -> Path:
    """The file with every variable set that it only shows."""
    text = re.sub(r"^#(?=[A-Z_]+=)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    path = folder / "everything.env"
    path.write_text(text, encoding="utf-8")
    return path


def test_it_has_every_variable_that_is_documented(tmp_path: Path) -> None:
    names = read_env_file(everything(tmp_path)).keys()
    assert names == variables().keys() | OURS
    assert names == table(DOCS / "environment.md", "variable").keys() | OURS
    assert read_env_file(EXAMPLE).keys() == GUIDE


def meaning(environ: Mapping[str, str]) -> object:
    """What the configuration is with these variables, and no file named."""
    found = load_configuration([], [], environ, REGISTRY)
    return [{key: spec.config for key, spec in found.configured.items()}, found.pipelines, found.settings]


def test_as_it_is_it_changes_nothing_nor_does_setting_all_of_it(tmp_path: Path) -> None:
    everything_set = read_env_file(everything(tmp_path))
    assert meaning(read_env_file(EXAMPLE)) == meaning({}) == meaning(everything_set)
    assert meaning(everything_set | {"BATCH_SIZE": "11"}) != meaning({})


def test_a_shell_reads_the_same_in_it(tmp_path: Path) -> None:
    path = everything(tmp_path)
    shown = subprocess.run(["env", "-i", "sh", "-c", f"set -a; . {path}; env -0"], capture_output=True, check=True)
    found = dict(pair.split("=", 1) for pair in shown.stdout.decode().split("\0") if pair)
    assert {name: found[name] for name in read_env_file(path)} == read_env_file(path)
