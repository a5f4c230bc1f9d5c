"""Which points are of one series, and what a series may take."""

from __future__ import annotations

import pytest

from tests.plugins.exporters.prometheus.otlp import Exposed, buckets, counter, gauge, histogram, number

pytestmark = pytest.mark.anyio


async def test_attributes_in_another_order_are_the_same_series() -> None:
    exposed = Exposed()
    await exposed.take(counter("a", number(1, {"b": "x", "c": "y"})))
    await exposed.take(counter("a", number(2, {"c": "y", "b": "x"})))
    assert await exposed.shown() == {("a_total", frozenset({("b", "x"), ("c", "y")})): 2}
    assert exposed.set_aside == {}


async def test_an_instance_with_a_new_version_goes_on_with_its_series() -> None:
    exposed = Exposed()
    whose = {"service.name": "shop", "service.instance.id": "1"}
    await exposed.take(counter("a", 5), resource={**whose, "service.version": "1.0"})
    await exposed.take(counter("a", 1), resource={"service.version": "2.0", **whose})
    assert list((await exposed.shown()).values()) == [1]
    assert exposed.set_aside == {}


async def test_of_two_resources_that_look_the_same_the_first_keeps_the_series() -> None:
    exposed = Exposed()
    await exposed.take(counter("a", 5), resource={"service.name": "shop", "host.name": "one"})
    await exposed.take(counter("a", 1), resource={"service.name": "shop", "host.name": "two"})
    await exposed.take(counter("a", 2), resource={"service.name": "shop", "host.name": "two"})
    assert list((await exposed.shown()).values()) == [5]
    assert exposed.set_aside == {"with the labels of another series": 1}


async def test_a_histogram_may_get_other_buckets() -> None:
    exposed = Exposed()
    await exposed.take(histogram("a", buckets([1], [1, 0])))
    await exposed.take(histogram("a", buckets([1, 2], [1, 0, 3])))
    shown = await exposed.shown()
    assert shown[("a_bucket", frozenset({("le", "2.0")}))] == 1
    assert shown[("a_count", frozenset())] == 4


async def test_descriptions_count_as_bytes_of_the_data() -> None:
    exposed = Exposed(max_bytes=2048)
    await exposed.take(*[gauge(f"a{each}", 1, description="d" * 900) for each in range(5)])
    assert len(await exposed.values()) == 2
    assert len(await exposed.text()) <= 2048
    assert exposed.set_aside == {"beyond max_bytes": 3}
