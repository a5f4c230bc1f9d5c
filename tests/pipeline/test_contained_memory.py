"""A call that raises keeps none of its arguments: the body of a refused push must not wait for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from pipeline import ComponentConfig, Extension, Malformed
from pipeline.containment import ComponentFailed, contained
from pipeline.deadlines import Asked, Calls
from pipeline.testing import NopHost

pytestmark = pytest.mark.anyio


class Large:
    """An argument that tells when it is gone."""


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("raised", [Malformed("no"), ValueError("an internal error")])
async def test_a_call_that_raises_keeps_none_of_its_arguments(raised: Exception, suspends: bool) -> None:
    async def method(large: Large) -> None:
        if suspends:
            await asyncio.sleep(0)
        raise type(raised)(*raised.args)

    called = contained(Asked(Calls(), Extension("x", ComponentConfig(), NopHost()), "decode", 30.0), method)

    async def call() -> weakref.ref[Large]:
        large = Large()
        seen = weakref.ref(large)
        try:
            await called(large)
        except (Malformed, ComponentFailed):
            return seen
        raise AssertionError("it raised nothing")

    gc.collect()
    gc.disable()
    try:
        assert (await call())() is None
    finally:
        gc.enable()
