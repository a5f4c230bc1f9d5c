"""What every test shares."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The servers run on asyncio, so the tests do."""
    return "asyncio"
