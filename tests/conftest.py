"""What every test shares."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.leaks"]


@pytest.fixture
def anyio_backend() -> str:
    """The servers run on asyncio, so the tests do."""
    return "asyncio"
