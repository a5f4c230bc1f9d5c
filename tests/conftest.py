"""What every test shares."""

from __future__ import annotations

from collections.abc import Generator

import pytest

pytest_plugins = ["tests.leaks", "tests.faults.report"]


@pytest.fixture
def anyio_backend() -> str:
    """The servers run on asyncio, so the tests do."""
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Halves of characters, which some tests log on purpose, could not be handed over by a worker of pytest-xdist."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report
