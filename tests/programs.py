"""Programs from Debian's packages that tests need: missing ones skip the test here, and fail it in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str, package: str | None = None) -> str:
    """The program's path."""
    found = shutil.which(program)
    if found is None:
        line = f"{program} is missing (apt-get install {package or program})"
        if os.environ.get("CI"):
            pytest.fail(line)
        pytest.skip(line)
    return found
