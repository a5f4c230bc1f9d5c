"""What waits for an exporter: items to the item, bytes as near as stretches allow, and exactly nothing when nothing waits."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from pipeline.waiting import STRETCH_BYTES, Waiting

GROUPS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 2 * STRETCH_BYTES)), max_size=40)


@given(before=st.tuples(st.integers(0, 500), st.integers(0, 10**7)), groups=GROUPS, moves=st.lists(st.integers(0, 900)))
def test_items_are_exact_and_bytes_are_no_further_off_than_a_stretch(
    before: tuple[int, int], groups: list[tuple[int, int]], moves: list[int]
) -> None:
    waiting = Waiting(*before)
    if not before[0]:
        before = (0, 0)
        waiting = Waiting()
    # Every item with its share of its group, the exact account that nobody can afford to keep.
    shares: deque[float] = deque([before[1] / before[0]] * before[0] if before[0] else [])
    largest = before[1]
    for items, size in groups:
        waiting.add(items, size)
        shares.extend([size / items] * items)
        largest = max(largest, size)
        for move in [moves.pop()] if moves else []:
            items = min(move, len(shares))
            waiting.pass_over(items)
            for _ in range(items):
                shares.popleft()
        assert waiting.items == len(shares)
        assert abs(waiting.bytes - sum(shares)) <= max(largest, STRETCH_BYTES) + len(moves) + 40
    waiting.pass_over(len(shares))
    assert (waiting.items, waiting.bytes) == (0, 0)


def test_a_long_outage_costs_a_few_stretches_and_no_row_is_kept() -> None:
    waiting = Waiting()
    for _ in range(100_000):
        waiting.add(5, 1000)
    assert (waiting.items, waiting.bytes) == (500_000, 100_000_000)
    assert len(waiting._stretches) < 100
    waiting.pass_over(250_000)
    assert abs(waiting.bytes - 50_000_000) <= STRETCH_BYTES
