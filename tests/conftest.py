"""What every test shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest
from httpx._transports import default

from pipeline.masking import MASKER

pytest_plugins = ["tests.leaks", "tests.faults.report"]

# Reading whom to trust on the Internet takes 45 ms of a processor, and httpx does it anew for each of thousands of clients.
default.create_ssl_context = cache(default.create_ssl_context)  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that may take longest come first, so that no worker begins one when the others are about to end."""
    longest: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        longest[item.path] = max([longest[item.path], *(mark.args[0] for mark in item.iter_markers("timeout"))])
    items.sort(key=lambda item: longest[item.path], reverse=True)


@pytest.fixture(autouse=True)
def _forget_secrets() -> None:
    """Secrets of another test's configuration, which may be everyday words, are not masked in this one."""
    MASKER.forget()


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
