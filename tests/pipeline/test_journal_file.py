"""The journal's record: what is written is what is read."""

from __future__ import annotations

from datetime import UTC

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Event, EventBatch, MetricBatch
from pipeline.data import Batch
from pipeline.journal_format import decode_group, encode_group

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(text, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), st.none())
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=5)
times = st.datetimes(timezones=st.just(UTC))
events = st.builds(
    Event,
    type=text,
    value=st.floats(allow_nan=False),
    timestamp=times,
    duration_ms=st.none() | st.floats(0, 1e8),
    dimensions=st.dictionaries(text, scalars),
    metadata=st.dictionaries(text, values),
)
batches = st.one_of(
    st.builds(
        EventBatch, service=text, events=st.lists(events), received_at=times, request_id=text, version=st.none() | text
    ),
    st.builds(MetricBatch, request=st.binary(), points=st.integers(0, 10_000), received_at=times),
)


@given(st.lists(batches))
def test_a_journal_record_reads_back_as_it_was_written(several: list[Batch]) -> None:
    assert decode_group(encode_group([msgspec.msgpack.encode(batch) for batch in several])) == several
