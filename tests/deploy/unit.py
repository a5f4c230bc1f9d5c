"""Unit files as systemd reads them, and as a test can run them: with other paths and ports."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.running import free_port
from tests.test_docs import ROOT

FOLDER = ROOT / "deploy" / "systemd"
BACKUP = ROOT / "deploy" / "backup"
UNIT = FOLDER / "metrics-service.service"
CONFIG = FOLDER / "config"


def settings(path: Path, section: str) -> dict[str, list[str]]:
    """The settings of a section, each with all its values in order. Comments are lines of their own, as systemd has it."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif line and line[0] not in "#;" and current == section:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def seconds(value: str) -> float:
    """A time span of the units that we use."""
    units = {"min": 60.0, "h": 3600.0, "d": 86400.0}
    unit = next((unit for unit in units if value.endswith(unit)), "")
    return float(value.removesuffix(unit)) * units.get(unit, 1.0)


def configured(folder: Path, **variables: str) -> tuple[Path, str]:
    """A copy of the shipped configuration with its data in `folder`, on loopback and free ports; and the base URL."""
    port = str(free_port())
    own = {
        "SQLITE_DB_PATH": str(folder / "metrics.db"),
        "METRICS_SERVICE_HOST": "127.0.0.1",
        "METRICS_SERVICE_PORT": port,
        "OTEL_PROMETHEUS_PORT": str(free_port()),
        **variables,
    }
    copy = folder / "config"
    copy.write_text(with_values(CONFIG.read_text(encoding="utf-8"), own), encoding="utf-8")
    copy.chmod(0o640)
    return copy, f"http://127.0.0.1:{port}"


def with_values(text: str, values: Mapping[str, str]) -> str:
    """The configuration with these values in the place of those that it has, or behind them."""
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in values]
    return "\n".join([*lines, *(f'{name}="{value}"' for name, value in values.items())]) + "\n"


def exec_start(config: Path, unit: Path = UNIT) -> list[str]:
    """The command of the unit, with the programs of this environment and that file in the place of its own."""
    (line,) = settings(unit, "Service")["ExecStart"]
    line = line.replace("/opt/metrics-service/.venv/bin/metrics-service", f"{sys.executable} -m pipeline.cli")
    return shlex.split(line.replace("/etc/metrics-service/config", str(config)))


def environment(notify_socket: str | None = None, unit: Path = UNIT) -> dict[str, str]:
    """What systemd gives a service of the unit to see, and nothing else; `PYTHONPATH` is where this checkout is."""
    service = settings(unit, "Service")
    given = dict(pair.split("=", 1) for line in service.get("Environment", []) for pair in shlex.split(line))
    manager = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    if notify_socket:
        (patience,) = service["WatchdogSec"]
        manager |= {"NOTIFY_SOCKET": notify_socket, "WATCHDOG_USEC": str(int(seconds(patience) * 1e6))}
    return {**manager, **given}
