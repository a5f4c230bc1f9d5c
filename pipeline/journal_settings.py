"""How a journal is kept, as the processor that ends a pipeline says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.journal_format import Durability


@dataclass(frozen=True)
class JournalSettings:
    """How a journal is kept, and when the exporters that write out are due.

    `size` is in items, `flush_interval` in seconds: an exporter is due when either is reached. `max_bytes` is how much may
    wait for the slowest exporter before pushes are refused, `max_dead_letter_bytes` how much of what exporters refused is kept,
    `reserve` how much room the folder's disk must have left (`pipeline/reserve.py`).
    """

    folder: Path
    size: int
    flush_interval: float
    max_bytes: int
    durability: Durability = Durability.POWER_LOSS
    max_dead_letter_bytes: int = 100 * 2**20
    reserve: int = 0
