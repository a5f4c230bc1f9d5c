"""An environment that a test may install into: what is installed here is there too, and nothing comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PROGRAMS = {"pip": "pip", "pytest": "pytest", "mypy": "mypy", "metrics-service": "pipeline.cli"}
"""The programs of it, and the modules that they run."""


def make_overlay(folder: Path) -> Path:
    """A virtual environment in `folder` on top of the one that the tests run in. Returns its folder of programs."""
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    ours = sysconfig.get_path("purelib")
    # A folder that is only on the path would not have its .pth files read: the one of this checkout, for example.
    (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    programs = folder / "bin"
    for name, module in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {programs / "python"} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "ruff").symlink_to(Path(sys.executable).parent / "ruff")
    return programs


def overlay_environ(programs: Path) -> dict[str, str]:
    """The variables with which programs find the environment. pip then asks nobody and builds with what is there."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("METRICS_", "SQLITE_", "OTEL_"))}
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_CACHE_DIR": "1", "PIP_QUIET": "1"}
    return {**ours, **pip, "PATH": f"{programs}:{ours['PATH']}", "PYTHONPATH": ""}


def call(programs: Path, folder: Path, *words: str) -> str:
    """What a program prints that ends well; it runs in `folder`."""
    environ = overlay_environ(programs)
    ended = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, f"{' '.join(words)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout + ended.stderr
