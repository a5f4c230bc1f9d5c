"""Programs from Debian's packages that tests need: missing ones skip the test here, and fail it in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(program: str, package: str | None = None) -> str:
    """The program's path."""
    found = shutil.which(program)
    if found is None:
        lacking(f"{program} is missing (apt-get install {package or program})")
    return found


def lacking(what: str) -> NoReturn:
    """This machine cannot run the test."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
