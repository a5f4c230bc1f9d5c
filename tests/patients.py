"""A configuration for production in the hands of `metrics-service doctor`."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.cli import main
from pipeline.findings import CHECKLIST, file_system
from plugins.extensions.database.connection import has_wal_reset_bug
from tests.running import KEY

SETTINGS = [
    "receivers.http.max_connections=50",
    "exporters.prometheus.max_connections=50",
    "processors.batch.max_bytes=2MB",
]


class Ended(NamedTuple):
    """What a command has left."""

    code: int
    out: str
    err: str


class Patient:
    """A configuration, and what doctor says of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.settings = list(SETTINGS)
        self.arguments: list[str] = []
        self.variables = variables(folder)
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def call(self, *words: str) -> Ended:
        """A command of `metrics-service` with this configuration."""
        common = ["--config", "production", *(word for each in self.settings for word in ("--set", each))]
        with self._monkeypatch.context() as here:
            here.chdir(self.folder)
            for name in os.environ:
                if name.startswith(("METRICS_", "SQLITE_", "OTEL_", "LOG_")):
                    here.delenv(name)
            for name, value in self.variables.items():
                here.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main([*words, *common, *self.arguments])
        return Ended(int(ended.value.code or 0), *self._capsys.readouterr())

    def findings(self) -> list[dict[str, Any]]:
        """Those that are not well; without what this machine itself has and no configuration can mend."""
        ended = self.call("doctor", "--json")
        assert ended.err == ""
        found: list[dict[str, Any]] = json.loads(ended.out)
        assert ended.code == any(each["level"] == "problem" for each in found)
        assert {each["item"] for each in found} >= {str(item) for item in CHECKLIST}
        return [each for each in found if each["level"] != "ok" and not is_the_machines(each, self.folder)]


def variables(folder: Path) -> dict[str, str]:
    """Those of a production service with its data in `folder`, behind a proxy on this machine."""
    return {
        "SQLITE_DB_PATH": str(folder / "metrics.db"),
        "METRICS_SERVICE_HOST": "127.0.0.1",
        "METRICS_BACKUP_DIR": str(folder / "backups"),
        "METRICS_API_KEY_TEST": KEY,
        "METRICS_JOURNAL_RESERVE": "64MiB",
    }


def is_the_machines(finding: dict[str, Any], folder: Path) -> bool:
    """Whether this is of the machine that the test runs on."""
    what = finding["what"]
    return (
        (what.startswith("this is root") and os.geteuid() == 0)
        or ("WAL-reset bug" in what and has_wal_reset_bug(sqlite3.sqlite_version_info))
        or (f"is on {file_system(folder)}," in what)
    )
