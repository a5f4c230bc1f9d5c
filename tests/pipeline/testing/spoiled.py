"""How a good plugin is spoiled, and by whom it is noticed."""

from __future__ import annotations

from dataclasses import dataclass

from tests.pipeline.testing.subjects import OfShelf, Subjects


@dataclass(frozen=True)
class Fault:
    """What is spoiled, and what the check says. `old` may be several texts, each with the new one at its place."""

    check: str
    old: str
    new: str
    says: str
    suite: Subjects = OfShelf
    module: str = "acme_shelf"
    type: str | None = None
