"""Whatever comes in: it is refused in so many words, or everything behind can keep, store and read it back unchanged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pipeline import Context, Delivery, EventBatch, Invalid, Malformed, Refusal, TooLarge
from pipeline.journal_format import decode_group, encode_group
from pipeline.testing import NopHost
from plugins.exporters.sqlite import SqliteConfig, SqliteExporter
from plugins.extensions.database.extension import DatabaseExtension
from plugins.processors.validate import SHIPPED_TYPES, ValidateConfig, ValidateProcessor
from plugins.processors.validate.document import Document
from tests.plugins.extensions.databases import started_database

pytestmark = pytest.mark.anyio

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
scalars = st.one_of(st.none(), st.booleans(), numbers, text, st.just("x" * 1001), st.just("<1e400>"))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
)
deep = st.integers(1, 40).map(lambda depth: json.loads("[" * depth + "]" * depth))
wide = st.sampled_from([[0] * 1001, [[]] * 400, {"a": [2**70] * 1001}, [[""] * 600] * 2])
offsets = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
times = st.datetimes(timezones=st.none() | offsets).map(lambda time: time.isoformat()) | st.sampled_from(
    ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "2026-02-30", "2026-07-01T24:00:00", "2026-W01-1", ""]
)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)


def mapping(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.dictionaries(keys, values, max_size=5)


# Of the right shape, so that the typed pass takes it; types, times, names and metadata may still be wrong.
shaped_metrics = st.fixed_dictionaries(
    {"type": st.sampled_from(SHIPPED_TYPES) | text, "value": st.floats(-1e12, 1e12) | st.integers(-(10**12), 10**12)},
    optional={
        "duration_ms": st.none() | st.floats(0, 86_400_000) | st.integers(0, 86_400_000),
        "timestamp": st.none() | times,
        "dimensions": mapping(
            names | text.filter(bool), st.one_of(st.none(), st.booleans(), st.floats(-1e300, 1e300), text, st.integers(-(2**63), 2**63 - 1))
        ),
        "metadata": mapping(text.filter(bool), st.text("<1e400", max_size=3) | st.integers(-(2**70), 2**70) | deep | wide),
        "unknown": values,
    },
)  # fmt: skip
# Near that shape, with anything anywhere.
odd_metrics = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(SHIPPED_TYPES) | values,
        "value": st.floats(-1e12, 1e12) | values,
        "duration_ms": values,
        "timestamp": times | values,
        "dimensions": mapping(names | text, values) | values,
        "metadata": mapping(text, values | deep | wide) | values,
    },
)
service = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
optional = {"version": st.none() | text, "instance_id": st.none() | service, "unknown": values}
shaped = st.fixed_dictionaries(
    {"service": service, "metrics": st.lists(shaped_metrics, min_size=1, max_size=4)}, optional=optional
)
odd = st.fixed_dictionaries(
    {"service": service | values, "metrics": st.lists(shaped_metrics | odd_metrics | values, max_size=4) | values},
    optional={name: one | values for name, one in optional.items()},
)


def written(document: Any) -> bytes:
    """As JSON, in which `"<1e400>"` becomes the number."""
    return json.dumps(document).replace('"<1e400>"', "1e400").encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A document with some bytes replaced."""
    body = written(draw(shaped))
    start = draw(st.integers(0, len(body)))
    return body[:start] + draw(st.binary(max_size=4)) + body[start + draw(st.integers(0, 4)) :]


bodies = st.one_of(shaped.map(written), odd.map(written), values.map(written), damaged(), st.binary(max_size=40))


async def decode(body: bytes, context: Context) -> EventBatch | Refusal:
    """What `validate` makes of it."""
    try:
        return await ValidateProcessor("validate", ValidateConfig(), NopHost()).decode(body, context)
    except (Malformed, Invalid, TooLarge) as refusal:
        return refusal


class Store:
    """The real exporter on a real database."""

    def __init__(self, database: DatabaseExtension) -> None:
        self._database = database
        self._exporter = SqliteExporter("sqlite", SqliteConfig(), NopHost(database))
        self._position = 0

    async def keep(self, batch: EventBatch) -> list[tuple[Any, ...]]:
        """Store the batch and give the rows that it became."""
        after, self._position = self._position, self._position + 1
        ((newest,),) = await self._database.read("SELECT coalesce(max(id), 0) FROM metrics")
        await self._exporter.export(Delivery("events", after, self._position, [batch]))
        columns = "service, service_version, metric_type, timestamp, value, duration_ms, dimensions, metadata"
        return await self._database.read(f"SELECT {columns} FROM metrics WHERE id > ? ORDER BY id", (newest,))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with started_database(tmp_path / "metrics.db") as database:
        yield Store(database)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(body=bodies)
async def test_what_comes_in_is_refused_or_can_be_journaled_and_stored_and_is_the_same_afterwards(
    body: bytes, store: Store
) -> None:
    context = Context()
    batch = await decode(body, context)
    event(type(batch).__name__)
    if isinstance(batch, Refusal):
        assert not isinstance(batch, Invalid) or batch.details or context.rejected == context.received > 0
        return
    assert len(batch) == context.received - context.rejected > 0
    assert bool(context.errors) == bool(context.rejected)

    (read,) = decode_group(encode_group([msgspec.msgpack.encode(batch)]))
    assert repr(read) == repr(batch), "unlike ==, this tells 1 from 1.0 and from True"

    for row, kept in zip(await store.keep(batch), batch.events, strict=True):
        *plain, dimensions, metadata = row
        time = kept.timestamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
        assert plain == [batch.service, batch.version, kept.type, time, kept.value, kept.duration_ms]
        assert (json.loads(dimensions), json.loads(metadata)) == (kept.dimensions, kept.metadata)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(document=shaped)
async def test_the_typed_pass_and_the_field_by_field_pass_agree(document: dict[str, Any]) -> None:
    typed = written(document)
    msgspec.json.decode(typed, type=Document)  # takes the typed pass
    apart = written({**document, "metrics": [*document["metrics"], {}]})  # does not

    one, other = Context("req_1"), Context("req_1")
    other.received_at = one.received_at = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
    expected, found = await decode(typed, one), await decode(apart, other)

    assert repr(found) == repr(expected)
    assert other.errors[:-2] == one.errors
    assert (other.received, other.rejected, other.faults) == (one.received + 1, one.rejected + 1, one.faults + 2)
