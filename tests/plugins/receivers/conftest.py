"""What the tests of receivers share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["hypercorn", "uvicorn"])
def server(request: pytest.FixtureRequest) -> str:
    """The override that chooses a server: what the contract promises holds on both."""
    return f"receivers.http.server={request.param}"
