"""How large the tests are that can be made longer: short in `make test` and `make faults`, long in `make soak`."""

from __future__ import annotations

import os


def sized(short: int, long: int) -> int:
    """`long` if the environment variable SOAK is set, else `short`."""
    return long if os.environ.get("SOAK") else short
